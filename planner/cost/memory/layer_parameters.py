"""Parameters of one layer and of the ends of a model on one rank, by what splits them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from planner.cost.adapted import adapter_parameters
from planner.cost.job import Jobs
from planner.cost.software_memory import MemoryRules
from planner.cost.vocabulary import padded_vocabulary
from profiles.models.transformer import DENSE, ROUTED, Array


@dataclass(frozen=True, slots=True, kw_only=True)
class KindParameters:
    """Parameters of a layer of one kind on one rank by what splits them. Shapes: one entry per job.

    `common` ones are sharded over data- and context-parallel ranks, routed `experts` over those that hold the same
    experts. `matrices` beside those of attention count every distinct shape of a weight once: one expert of many.
    `adapters`: of low rank, beside its linears; `frozen`: those of the common ones that a task does not train.
    """

    common: Array
    experts: Array
    matrices: Array
    adapters: Array
    frozen: Array

    @property
    def total(self) -> Array:
        """All parameters."""
        return self.common + self.experts


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParameters:
    """Parameters of one layer on one rank by kind, and of the ends of the model. Shapes: one entry per job."""

    kinds: dict[str, KindParameters]
    attention_matrices: Array
    vocabulary: Array
    positions: Array

    def take(self, index: NDArray[np.int64]) -> LayerParameters:
        """Those of some jobs."""
        kinds = {
            kind: KindParameters(**{field.name: getattr(own, field.name)[index] for field in fields(KindParameters)})
            for kind, own in self.kinds.items()
        }
        return LayerParameters(
            kinds=kinds,
            attention_matrices=self.attention_matrices[index],
            vocabulary=self.vocabulary[index],
            positions=self.positions[index],
        )


def layer_parameters(jobs: Jobs, rules: MemoryRules) -> LayerParameters:
    """Parameters of a rank's share of layers and vocabulary.

    Model: column- and row-split linears are divided by the tensor degree, the vocabulary by its own, norms, routers and
    latent projections are not, experts by expert · expert-tensor. Vocabularies are padded to what the stack asks for.
    """
    model = jobs.model
    split, whole = (np.zeros(len(jobs)) for _ in range(2))
    for _, inputs, outputs, how in model.attention_linears:
        size = inputs * outputs + np.where(model.biases, outputs, 0.0)
        split = split + np.where(how != "whole", size, 0.0)
        whole = whole + np.where(how == "whole", size, 0.0)
    attention = split / jobs.tensor + whole
    ffn = model.feed_forward_parameters(model.ffn_size) / jobs.tensor
    shared = model.feed_forward_parameters(model.shared_ffn_size) / jobs.tensor
    router = model.num_experts * model.hidden_size
    one_expert = model.feed_forward_parameters(model.expert_ffn_size) / jobs.expert_tensor
    distinct = np.where(model.shared_ffn_size / jobs.tensor == model.expert_ffn_size / jobs.expert_tensor, 0.0, shared)
    vocabulary = padded_vocabulary(jobs)
    kinds = {
        DENSE: KindParameters(
            common=attention + ffn + model.norm_parameters,
            experts=np.zeros(len(jobs)),
            matrices=ffn,
            adapters=adapter_parameters(jobs, DENSE),
            frozen=np.zeros(len(jobs)),
        ),
        ROUTED: KindParameters(
            common=np.where(model.is_moe, attention + shared + router + model.norm_parameters, 0.0),
            experts=one_expert * model.num_experts / jobs.expert,
            matrices=np.where(model.is_moe, distinct + one_expert, 0.0),
            adapters=adapter_parameters(jobs, ROUTED),
            frozen=np.zeros(len(jobs)),
        ),
    }
    return LayerParameters(
        kinds={kind: kinds[kind] for kind in model.kinds},
        attention_matrices=attention,
        vocabulary=vocabulary * model.hidden_size / jobs.vocabulary_split,
        positions=model.learned_positions * model.hidden_size,
    )
