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
    `zero_beside`: axes that stages above 1 go with. `shards_in_part`: ZeRO 3 over fewer ranks than all replicas.
    `sequence_parallel`, `vocab_parallel`: whether tensor parallelism comes without (False) or with (True) each.
    `orders`: of the axes, innermost first, by initial: t, c, d, p; `narrow_orders`: those among them that go with
    neither context-parallel ranks nor a mixture of experts. `uneven_stages`: how layers are cut into stages, the
    schedules of which stand beside this. `recompute`: its methods; `partial_recompute`: of how many layers.
    `precisions`, `codecs`, `offload`: by the names that plans give them; `compiles`: whether compiled layers are an
    option.
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
    shards_in_part: bool = False
    sequence_parallel: tuple[bool, ...] = (False, True)
    vocab_parallel: tuple[bool, ...] = (True,)
    orders: tuple[str, ...] = ("tcdp",)
    narrow_orders: tuple[str, ...] = ()
    uneven_stages: Uneven = "no"
    recompute: tuple[str, ...] = ("none", "full")
    partial_recompute: Partial = "no"
    precisions: tuple[str, ...] = ("fp32", "bf16")
    codecs: tuple[str, ...] = ("none",)
    offload: tuple[str, ...] = ("none",)
    compiles: bool = False
