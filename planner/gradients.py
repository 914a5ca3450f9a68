"""The data axis: seconds to exchange gradients, how much of it backward hides, what a codec costs, the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.collectives import collective_seconds, exposed_seconds, group_of
from planner.layer_costs import find_curve
from planner.stages import StageCosts
from planner.table import PlanTable
from profiles.cluster import Collective, MachineProfile
from profiles.codecs import GRADIENT_BYTES, codec
from profiles.efficiency import ADAMW_BYTES_PER_PARAMETER, kernel_seconds

Array = NDArray[np.float64]

# DistributedDataParallel's default bucket_cap_mb.
BUCKET_BYTES = 25 * 2**20
# Bytes that AccumulateGrad moves per parameter for each further micro-batch: two reads and a write of fp32.
ACCUMULATE_BYTES = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Seconds that the gradient exchange adds to a step. Shapes: (plan,)."""

    exposed: Array
    codec: Array


def gradient_seconds(machine: MachineProfile, table: PlanTable, stages: StageCosts) -> Exchange:
    """Exposed seconds of the gradient exchange and of its codec, on the stage where they are longest.

    Model: buckets of 25 MiB go out while backward of the last micro-batch runs; the last bucket is complete only when
    backward is, so it is exposed whole. ZeRO stages 1 and 2 reduce-scatter gradients and all-gather parameters, stage 3
    gathers parameters in forward and backward of every micro-batch as well.
    Ignores: the order in which layers fill buckets.
    """
    exposed, coding = np.zeros(len(table)), np.zeros(len(table))
    inner = np.where(table.axis_order == 0, 1, table.pipeline_parallel) * table.tensor_parallel
    keys = np.stack([table.data_parallel, table.zero_stage, table.codec, inner], axis=1)
    distinct, inverse = np.unique(keys, axis=0, return_inverse=True)
    for index, (degree, zero, code, stride) in enumerate(distinct):
        where = np.flatnonzero(inverse.reshape(-1) == index)
        if degree == 1:
            continue
        group = group_of(int(degree), int(stride), machine.devices_per_node)
        name = table.codec_names[code]
        wire = codec(name).wire_bytes(
            stages.num_parameters[:, where], stages.matrix_sides[:, where], stages.num_vectors[:, where]
        )
        backward = stages.backward_busy[:, where]
        num_buckets = np.maximum(1.0, np.ceil(GRADIENT_BYTES * stages.num_parameters[:, where] / BUCKET_BYTES))

        def bucketed(collective: Collective, num_bytes: Array, count: Array = num_buckets, group=group) -> Array:  # type: ignore[no-untyped-def]
            return count * collective_seconds(machine, collective, num_bytes / count, group)[0]

        encode = _codec_seconds(machine, name, stages.num_parameters[:, where], num_buckets)
        if zero == 0:
            total = bucketed("all_reduce", np.asarray(wire))
            tail = total / num_buckets
            added = tail + exposed_seconds(machine, total - tail, backward * (1 - 1 / num_buckets))
        else:
            reduce = bucketed("reduce_scatter", np.asarray(wire))
            gather = bucketed("all_gather", GRADIENT_BYTES * stages.num_parameters[:, where])
            tail = reduce / num_buckets
            added = tail + exposed_seconds(machine, reduce - tail, backward * (1 - 1 / num_buckets))
            if zero < 3:
                added = added + gather
            else:
                busy = (stages.forward_busy[:, where] + backward) * table.num_microbatches[where]
                gathers = 2 * gather * table.num_microbatches[where]
                added = added + exposed_seconds(machine, gathers, busy) + gather / num_buckets
        exposed[where] = (added + encode).max(axis=0) - encode.max(axis=0)
        coding[where] = encode.max(axis=0)
    return Exchange(exposed=exposed, codec=coding)


def _codec_seconds(machine: MachineProfile, name: str, num_parameters: Array, num_buckets: Array) -> Array:
    """Seconds to encode and decode the gradients; they run on the device that computes, so nothing hides them."""
    curve = None if name == "none" else find_curve(machine, "codec", name, "fp32")
    if curve is None:
        return np.zeros_like(num_parameters)
    num_bytes = GRADIENT_BYTES * num_parameters / num_buckets
    return np.asarray(num_buckets * kernel_seconds(curve, 0.0, num_bytes, [num_bytes]))


def optimizer_seconds(machine: MachineProfile, table: PlanTable, num_parameters: Array) -> Array:
    """Seconds of one AdamW step over a rank's `num_parameters`, sharded where ZeRO shards it, and of accumulation."""
    held = num_parameters / np.where(table.zero_stage >= 1, table.data_parallel, 1)
    curve = find_curve(machine, "optimizer", "", "fp32")
    if curve is None:
        step = held * ADAMW_BYTES_PER_PARAMETER / machine.memory_bytes_per_second
    else:
        step = kernel_seconds(curve, 0.0, held * ADAMW_BYTES_PER_PARAMETER, [held])
    accumulated = (table.num_microbatches - 1) * num_parameters * ACCUMULATE_BYTES
    return np.asarray(step + accumulated / machine.memory_bytes_per_second)
