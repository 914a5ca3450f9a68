"""The data axis: seconds to exchange gradients, how much of it backward hides, what a codec costs, the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.choices import FSDP_STAGES
from planner.collectives import Group, collective_seconds, exposed_seconds, group_of
from planner.layer_costs import find_curve
from planner.stages import StageCosts
from planner.table import PlanTable
from profiles.cluster import Collective, MachineProfile
from profiles.codecs import BUCKET_BYTES, GRADIENT_BYTES, codec
from profiles.efficiency import ADAMW_BYTES_PER_PARAMETER, kernel_seconds

Array = NDArray[np.float64]


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
    stride = np.where(table.axis_order == 0, 1, table.pipeline_parallel) * table.tensor_parallel
    keys = np.stack([table.data_parallel, table.zero_stage, table.codec, stride], axis=1)
    distinct, inverse = np.unique(keys, axis=0, return_inverse=True)
    for index, (degree, zero, code, step) in enumerate(distinct):
        rows = np.flatnonzero(inverse.reshape(-1) == index)
        if degree == 1:
            continue
        group = group_of(int(degree), int(step), machine.devices_per_node)
        name = table.codec_names[code]
        buckets = _Buckets(machine, group, stages.num_parameters[:, rows], codec(name).is_bucketed)
        encode = _codec_seconds(machine, name, stages.num_parameters[:, rows], buckets.count, degree)
        wire = np.asarray(
            codec(name).wire_bytes(
                stages.num_parameters[:, rows], stages.matrix_sides[:, rows], stages.num_vectors[:, rows]
            )
        )
        busy = (stages.forward_busy[:, rows], stages.backward_busy[:, rows])
        added = _added_seconds(
            machine, buckets, wire, busy, table.num_microbatches[rows].astype(float), int(zero), name
        )
        exposed[rows] = (added + encode).max(axis=0) - encode.max(axis=0)
        coding[rows] = encode.max(axis=0)
    return Exchange(exposed=exposed, codec=coding)


def _added_seconds(
    machine: MachineProfile,
    buckets: _Buckets,
    wire: Array,
    busy: tuple[Array, Array],
    num_microbatches: Array,
    zero: int,
    name: str,
) -> Array:
    """What exchanging `wire` bytes adds to a step in which a micro-batch computes for `busy` (forward, backward)."""
    forward, backward = busy
    if codec(name).gathered:
        return buckets.hidden_behind(backward, "all_gather", wire * buckets.group.size)
    if zero in FSDP_STAGES and machine.device_kind == "cpu":
        return _serial_seconds(machine, buckets, wire, num_microbatches, zero)
    added = buckets.hidden_behind(backward, "reduce_scatter" if zero else "all_reduce", wire)
    if zero in (1, 2):
        return np.asarray(added + buckets.seconds("all_gather", wire))
    if not zero:
        return added
    gather = buckets.seconds("all_gather", wire)
    all_busy = (forward + backward) * num_microbatches
    # The first layers' parameters are there before anything can run.
    return np.asarray(
        added + exposed_seconds(machine, 2 * gather * num_microbatches, all_busy) + gather / buckets.count
    )


def _serial_seconds(
    machine: MachineProfile, buckets: _Buckets, num_bytes: Array, num_microbatches: Array, zero: int
) -> Array:
    """What FSDP2 sends on CPU, where nothing hides it, since its overlap is made of CUDA streams.

    Model: gradients are scattered after every micro-batch; parameters are gathered twice for each (stage 3) or once a
    step (stage 2); every message is copied in and out.
    """
    gathers = 2 * num_microbatches if zero == max(FSDP_STAGES) else np.ones_like(num_microbatches)
    messages = num_microbatches * buckets.seconds("reduce_scatter", num_bytes)
    messages = messages + gathers * buckets.seconds("all_gather", num_bytes)
    return np.asarray(messages + (num_microbatches + gathers) * 2 * num_bytes / machine.memory_bytes_per_second)


def measured_codecs(machine: MachineProfile, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the codecs whose own work the machine was measured for."""
    known = {curve.name for curve in machine.kernels if curve.kind == "codec"}
    return tuple(name for name in names if name == "none" or known & {name, ""})


class _Buckets:
    """Collectives over gradients of `num_parameters`, cut into DDP's buckets. Shapes: (stage, plan)."""

    def __init__(self, machine: MachineProfile, group: Group, num_parameters: Array, bucketed: bool) -> None:
        self.machine, self.group = machine, group
        needed = np.ceil(GRADIENT_BYTES * num_parameters / BUCKET_BYTES)
        self.count = np.maximum(1.0, needed) if bucketed else np.ones_like(num_parameters)

    def seconds(self, collective: Collective, num_bytes: Array) -> Array:
        """Seconds of all buckets, one after the other."""
        return np.asarray(
            self.count * collective_seconds(self.machine, collective, num_bytes / self.count, self.group)[0]
        )

    def hidden_behind(self, backward: Array, collective: Collective, num_bytes: Array) -> Array:
        """Seconds that the buckets add to `backward`, during which all but the last may go out."""
        total = self.seconds(collective, num_bytes)
        last = total / self.count
        return last + exposed_seconds(self.machine, total - last, backward * (1 - 1 / self.count))


def _codec_seconds(
    machine: MachineProfile, name: str, num_parameters: Array, num_buckets: Array, num_ranks: int
) -> Array:
    """Seconds to encode and decode the gradients; they run on the device that computes, so nothing hides them.

    Messages that are gathered are decoded one by one, each rank's.
    """
    if name == "none":
        return np.zeros_like(num_parameters)
    num_bytes = GRADIENT_BYTES * num_parameters / num_buckets

    def seconds(kernel: str) -> Array:
        return np.asarray(kernel_seconds(find_curve(machine, "codec", kernel, "fp32"), 0.0, num_bytes, [num_bytes]))

    of_one = seconds(name)
    if codec(name).gathered:
        of_one = of_one + num_ranks * seconds(f"{name} decode")
    return num_buckets * of_one


def optimizer_seconds(machine: MachineProfile, table: PlanTable, num_parameters: Array) -> Array:
    """Seconds of one AdamW step over a rank's `num_parameters`, sharded where ZeRO shards it."""
    held = num_parameters / np.where(table.zero_stage >= 1, table.data_parallel, 1)
    curve = find_curve(machine, "optimizer", "", "fp32")
    return kernel_seconds(curve, 0.0, held * ADAMW_BYTES_PER_PARAMETER, [held])
