"""Bytes of each rank by kind: model states by ZeRO stage, what micro-batches in flight keep, and what lies beside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.cost.memory.stage_states import GATHERED_LAYERS
from planner.measured.stages import StageCosts
from planner.measured.table import PlanTable, schedule_names
from planner.schedules.registry import NONE, in_flight
from planner.schedules.steps import Shape
from profiles.codecs.codec import FSDP_STAGES, GRADIENT_BYTES, codec
from profiles.machines.profile import MachineProfile
from profiles.models.profile import MIXED

Array = NDArray[np.float64]

# fp32 parameters, as gradients are, and AdamW's two fp32 moments, at either precision (bf16 is autocast over fp32).
PARAMETER_BYTES, MOMENT_BYTES, LOW_BYTES = 4.0, 8.0, 2.0
GATHERED_ONCE, GATHERED_TWICE = FSDP_STAGES
# PyTorch's caching allocator reserves 3 to 9 % more than it hands out (43 published runs on B200); its context and the
# communicators lie outside (0.5 to 2 GiB seen, stas00/ml-engineering, 2026). A CPU has neither.
CUDA_SLACK_FRACTION, CUDA_CONTEXT_BYTES = 0.06, 1.5 * 2**30


def stage_bytes(machine: MachineProfile, table: PlanTable, stages: StageCosts) -> dict[str, Array]:
    """Bytes per kind on each stage. Shapes: (stage, plan); keys as in prediction.KINDS."""
    data, zero = table.data_parallel.astype(np.float64), table.zero_stage
    parameters = _parameter_bytes(table, stages)
    gradients = GRADIENT_BYTES * stages.num_parameters / np.where(zero >= 2, data, 1)
    optimizer = MOMENT_BYTES * stages.num_parameters / np.where(zero >= 1, data, 1)
    gradients, activations = _at_the_peak(table, _in_flight(table, len(stages.forward)), stages, gradients)
    activations = activations + _passing_bytes(table, stages)
    buffers = _codec_bytes(table, stages) + _pipeline_bytes(table, stages)
    held = parameters + gradients + optimizer + activations + buffers
    slack = held * CUDA_SLACK_FRACTION + CUDA_CONTEXT_BYTES if machine.device_kind == "cuda" else np.zeros_like(held)
    return {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": activations,
        "buffers": buffers,
        "slack": slack,
    }


def _in_flight(table: PlanTable, num_stages: int) -> Array:
    result = np.ones((num_stages, len(table)))
    for index, name in enumerate(schedule_names()):
        rows = np.flatnonzero(table.schedule == index)
        if name == NONE or len(rows) == 0:
            continue
        for count in np.unique(table.num_microbatches[rows]):
            where = rows[table.num_microbatches[rows] == count]
            result[:, where] = np.array(in_flight(Shape(name, num_stages, 1, int(count))))[:, None]
    return result


def _at_the_peak(table: PlanTable, held: Array, stages: StageCosts, gradients: Array) -> tuple[Array, Array]:
    """Gradients and activations at the moment when they hold most together.

    DDP's buckets hold gradients all the time, and so does a stage that goes forward again after its first backward.
    Otherwise a step starts without gradients; the first micro-batch's backward makes them and frees what it had kept:
    the peak lies before or after that. FSDP2's shards of gradients come one by one as well.
    """
    kept, cached = _casts(table, stages)
    activations = (held - 1) * (stages.kept_bytes - kept) + stages.working_bytes - kept + cached
    has_no_buckets = (table.data_parallel == 1) | (table.zero_stage >= GATHERED_ONCE)
    one_pass = has_no_buckets & (held >= table.num_microbatches)
    before_backward = one_pass & (gradients <= stages.kept_bytes)
    after_first_backward = one_pass & ~before_backward
    return (
        np.where(before_backward, 0.0, gradients),
        np.where(after_first_backward, activations - stages.kept_bytes, activations),
    )


def _parameter_bytes(table: PlanTable, stages: StageCosts) -> Array:
    """Parameters on a rank: whole, or FSDP2's shards and what it has gathered, in the precision of the passes.

    Stage 2 keeps all of them from its forward pass to its backward, stage 3 has the layer at work and the next.
    """
    whole = stages.num_parameters
    shards = PARAMETER_BYTES * whole / table.data_parallel
    low = LOW_BYTES if table.precision in MIXED else PARAMETER_BYTES
    fetched = np.minimum(whole, GATHERED_LAYERS * stages.largest_layer)
    states = [table.zero_stage == GATHERED_TWICE, table.zero_stage == GATHERED_ONCE]
    return np.select(states, [shards + low * fetched, shards + low * whole], PARAMETER_BYTES * whole)


def _passing_bytes(table: PlanTable, stages: StageCosts) -> Array:
    """Whole gradients of the layer at work until FSDP2 has shared them out: as computed, and as it reduces them.

    Of recomputed layers they come when what the layer had computed again is free.
    """
    reduced = np.where(np.array(table.codec_names)[table.codec] == "none", GRADIENT_BYTES, LOW_BYTES)
    computed = LOW_BYTES if table.precision in MIXED else 0.0
    has_any = (table.zero_stage >= GATHERED_ONCE) & (table.recompute == 0)
    return np.where(has_any, (computed + reduced) * stages.largest_layer, 0.0)


def _casts(table: PlanTable, stages: StageCosts) -> tuple[Array, Array]:
    """16-bit copies of weights: those that a layer would keep and FSDP2 does not; those that autocast holds besides.

    FSDP2 gathers weights in 16 bits, so that nothing is cast. Recomputed layers keep no copies, but autocast caches
    them until the stage's forward pass is over. Ignores: that the embedding's weights are never cast.
    """
    nothing = np.zeros_like(stages.num_parameters)
    if table.precision != "bf16":
        return nothing, nothing
    copies = LOW_BYTES * (stages.num_parameters - stages.num_vectors)
    is_sharded, is_recomputed = table.zero_stage >= GATHERED_ONCE, table.recompute > 0
    kept = np.minimum(np.where(is_sharded & ~is_recomputed, copies, 0.0), stages.kept_bytes)
    return kept, np.where(~is_sharded & is_recomputed, copies, 0.0)


def _codec_bytes(table: PlanTable, stages: StageCosts) -> Array:
    result = np.zeros_like(stages.num_parameters)
    for index, name in enumerate(table.codec_names):
        # FSDP2 reduces in 16 bits by itself.
        where = (table.codec == index) & (table.zero_stage < GATHERED_ONCE)
        held = codec(name).state_bytes(
            stages.num_parameters[:, where], stages.matrix_sides[:, where], table.data_parallel[where]
        )
        result[:, where] = held
    return result


def _pipeline_bytes(table: PlanTable, stages: StageCosts) -> Array:
    """Receive buffers, which torch.distributed.pipelining allots once for every micro-batch of a step."""
    num_stages = len(stages.forward)
    stage = np.arange(num_stages)[:, None]
    received = np.where(stage > 0, stages.input_bytes, 0.0) + np.where(stage < num_stages - 1, stages.output_bytes, 0.0)
    return np.asarray(received * np.where(num_stages > 1, table.num_microbatches, 0))
