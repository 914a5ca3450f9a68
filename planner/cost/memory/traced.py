"""What layers of a traced model hold: parameters and bytes as their kernels made them in the trace."""

from __future__ import annotations

from operator import attrgetter

import numpy as np

from planner.cost.adapted import routed_parameters
from planner.cost.job import Jobs
from planner.cost.memory.layer_parameters import KindParameters, LayerParameters
from planner.cost.memory.saved_tensors import LayerMemory
from planner.cost.memory.stage_states import GATHERED_LAYERS
from planner.cost.software_memory import MemoryRules
from profiles.models.operators import evaluate
from profiles.models.profile import MIXED
from profiles.models.traced_sizes import TracedSizes, is_of_task
from profiles.models.transformer import Array

LOW_BYTES = 2.0
# The stage of ZeRO whose weights are shards again after each pass.
RESHARDS = 3


def traced_parameters(jobs: Jobs, model: TracedSizes) -> LayerParameters:
    """Parameters of a rank's share of every kind of layer; what belongs to no layer, there is not."""
    one, zero = np.ones(len(jobs)), np.zeros(len(jobs))

    def of_kind(kind: str) -> KindParameters:
        held, vectors, frozen = (
            model.on_rank(attrgetter(name), kind, one, jobs.tensor, jobs.expert)
            for name in ("num_parameters", "num_vector_parameters", "num_frozen_parameters")
        )
        experts = routed_parameters(jobs, kind) / jobs.expert
        return KindParameters(
            common=held - experts, experts=experts, matrices=held - vectors, adapters=zero, frozen=frozen
        )

    return LayerParameters(
        kinds={kind: of_kind(kind) for kind in model.kinds}, attention_matrices=zero, vocabulary=zero, positions=zero
    )


def traced_memory(jobs: Jobs, rules: MemoryRules, model: TracedSizes, kind: str) -> LayerMemory:
    """Bytes that a layer keeps for its backward pass, and what that needs at its worst beside.

    Model: copies of weights in 16 bits, which the trace has among them, count with the states where they are held;
    elsewhere weights are in 16 bits as they are, or gathered so.
    A recomputed layer keeps its input, and lives through a whole forward and backward by itself.
    """

    def of_layer(name: str) -> Array:
        return model.on_rank(attrgetter(name), kind, jobs.micro_batch, jobs.tensor, jobs.expert)

    saved = of_layer("saved_bytes")
    peak = np.maximum(of_layer("forward_peak_bytes"), of_layer("backward_peak_bytes"))
    copies = np.zeros(len(jobs))
    if model.precision in MIXED:
        copies = LOW_BYTES * (of_layer("num_parameters") - of_layer("num_vector_parameters"))
    whole = np.maximum(saved - copies, 0.0)
    again = (jobs.recompute == "full") & model.can_recompute(kind)
    kept = np.where(again, of_layer("input_bytes"), whole)
    beside = np.maximum(peak - saved, 0.0) + np.maximum(whole - kept, 0.0)
    return LayerMemory(kept=kept, backward=beside, attention=np.zeros(len(jobs)))


def whole_beside(jobs: Jobs, rules: MemoryRules, kind: str) -> Array | None:
    """By how much sharded weights and gradients that are whole in a layer's backward differ from those of the largest.

    Of a layer of a task; None of other models.
    Model: what is outside of all blocks is one unit, which is whole from the loss on. When the last segment goes
    backward the last block is fetched as well, and no gradient is there; when a block does, it and the one before it,
    and its gradients; when the first segment does, the gradients of that unit.
    """
    model = jobs.model
    if not isinstance(model, TracedSizes) or not is_of_task(model):
        return None
    sizes = np.array([float(evaluate(layer.num_parameters, 1, 1, 1)) for layer in model.layers])
    structure, own = model.profile.structure, model.kinds.index(kind)
    outside = sizes[structure[0]] + (sizes[structure[-1]] if len(structure) > 1 else 0.0)
    everything, largest = sum(sizes[index] for index in structure), sizes.max()
    if own == structure[0]:
        weights, gradients = outside, outside
    elif own == structure[-1]:
        weights, gradients = outside + sizes[structure[-2]], 0.0
    else:
        weights, gradients = outside + GATHERED_LAYERS * sizes[own], sizes[own]
    usual = min(GATHERED_LAYERS * largest, everything)
    of_weights = np.where(jobs.zero_stage == RESHARDS, weights - usual, 0.0) * rules.gathered_bytes
    change = of_weights + (gradients - largest) * rules.gathered_gradient_bytes
    is_sharded = (jobs.zero_stage >= rules.shards_weights_at) & (jobs.pipeline == 1) & (jobs.data > 1)
    return np.where(is_sharded, change, 0.0)
