"""What is asked of a model before a plan of it is called legal."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.models.adapters import EVERYTHING, Adapters
from profiles.models.cutting import Cutting
from profiles.models.profile import ModelProfile
from profiles.models.sharing import Sharing
from profiles.models.sizes import ModelSizes
from profiles.models.splitting import Splitting


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the rules ask about a model; `is_transformer` tells whether its sequence and vocabulary can be split.

    `shared_weights` are names of those that several layers of a user's own share, where they are known. `is_task` tells
    whether it is a module that is trained as it is; `cutting` and `splitting` say how that is cut and split, if known.
    `num_experts` is None where that is seen when it is built; `sharing` says over how many ranks a task's are shared
    out, if known.
    """

    name: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_size: int
    vocab_size: int
    tied_embeddings: bool
    can_tensor_parallel: bool
    can_pipeline: bool
    is_transformer: bool
    num_experts: int | None = 0
    adapters: Adapters = EVERYTHING
    shared_weights: tuple[str, ...] = ()
    is_task: bool = False
    cutting: Cutting = Cutting()
    splitting: Splitting = Splitting()
    sharing: Sharing = Sharing()


def facts_of(model: ModelProfile) -> ModelFacts:
    """The facts of a profiled model."""
    return ModelFacts(
        name=model.name,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        ffn_size=model.ffn_size,
        vocab_size=model.vocab_size,
        tied_embeddings=model.tied_embeddings,
        can_tensor_parallel=model.can_tensor_parallel,
        can_pipeline=model.can_pipeline,
        is_transformer=model.workload.reads_text,
        num_experts=None if model.sharing.degrees or model.sharing.refusal else model.num_experts,
        adapters=model.workload.adapters,
        is_task=bool(model.workload.task),
        cutting=model.cutting,
        splitting=model.splitting,
        sharing=model.sharing,
    )


def facts_of_sizes(model: ModelSizes) -> ModelFacts:
    """The facts of a model that is known by its sizes."""
    sizes = model.transformer
    return ModelFacts(
        name=model.name,
        num_layers=model.num_layers + 2,
        num_heads=int(sizes.num_heads[0]),
        num_kv_heads=int(sizes.num_kv_heads[0]),
        ffn_size=int(sizes.ffn_size[0]),
        vocab_size=int(sizes.vocab_size[0]),
        tied_embeddings=bool(sizes.tied[0]),
        can_tensor_parallel=not sizes.num_experts[0],
        can_pipeline=not sizes.tied[0],
        is_transformer=True,
        num_experts=int(sizes.num_experts[0]),
        adapters=model.adapters,
    )
