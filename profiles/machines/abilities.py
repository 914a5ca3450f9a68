"""What a software stack can run: the axes, stages and words it has. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from profiles.artifacts import STRICT

# How the numbers of recomputed layers of stages may differ: all or none, the same everywhere, any.
Partial = Literal["no", "even", "any"]
# How the numbers of layers of stages may differ: not at all, in the first and the last, anywhere.
Uneven = Literal["no", "ends", "any"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a stack has words for; a plan with anything else is not offered for it.

    `version`: of the software whose own checks accepted such plans. `tensor`, `context`, `expert`, `pipeline`: which
    axes it has beside data. `zero_stages`: of plans without a pipeline, `pipeline_zero_stages`: of those with one;
    `zero_beside`: axes that stages above 1 go with, `whole_beside`: that stage 0 goes with where there are replicas.
    `shards_in_part`: ZeRO 3 over fewer ranks than all replicas, of the data axis alone.
    `sequence_parallel`, `vocab_parallel`: whether tensor parallelism comes without (False) or with (True) each;
    `routes_whole_sequences`: whether a mixture of experts does without the former; `copies_heads`: whether over more
    ranks than a model has heads of keys. `context_pieces`: how many pieces of a sample a context-parallel rank has, all
    as long. `ties_stages`: pipelines of models with tied embeddings.
    `orders`: of the axes, innermost first, by initial: t, c, d, p; `narrow_orders`: those among them that go with
    neither context-parallel ranks nor a mixture of experts. `uneven_stages`: how layers are cut into stages, the
    schedules of which stand beside this; `short_pipelines`: 1F1B of fewer micro-batches than stages. `recompute`: its
    methods; `partial_recompute`: of how many layers.
    `precisions`, `codecs`, `offload`: by the names that plans give them; `offload_zero_stages`: that states of several
    replicas are offloaded at; `gradient_dtypes`: that gradients are added up and sent in where a job says so, beside
    the usual one. `compiles`: whether compiled layers are an option. `families`: the model types that it
    has, empty for any.
    """

    __pydantic_config__ = STRICT

    version: str
    tensor: bool = True
    context: bool = True
    expert: bool = True
    pipeline: bool = True
    zero_stages: tuple[int, ...] = (0,)
    pipeline_zero_stages: tuple[int, ...] = (0,)
    zero_beside: tuple[str, ...] = ("tensor", "context", "expert")
    whole_beside: tuple[str, ...] = ("tensor", "context", "expert", "pipeline")
    shards_in_part: bool = False
    sequence_parallel: tuple[bool, ...] = (False, True)
    vocab_parallel: tuple[bool, ...] = (True,)
    routes_whole_sequences: bool = True
    copies_heads: bool = True
    context_pieces: int = 1
    ties_stages: bool = True
    orders: tuple[str, ...] = ("tcdp",)
    narrow_orders: tuple[str, ...] = ()
    uneven_stages: Uneven = "no"
    short_pipelines: bool = False
    recompute: tuple[str, ...] = ("none", "full")
    partial_recompute: Partial = "no"
    precisions: tuple[str, ...] = ("fp32", "bf16")
    codecs: tuple[str, ...] = ("none",)
    gradient_dtypes: tuple[str, ...] = ()
    offload: tuple[str, ...] = ("none",)
    offload_zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    compiles: bool = False
    families: tuple[str, ...] = ()
