"""The data axis: seconds to exchange gradients, how much of it backward hides, what a codec costs, the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.measured.collectives import Group, collective_seconds, exposed_seconds, group_of
from planner.measured.layer_costs import find_curve
from planner.measured.stages import StageCosts
from planner.measured.table import PlanTable
from profiles.codecs.codec import BUCKET_BYTES, FSDP_STAGES, GRADIENT_BYTES, codec
from profiles.laws.curves import ADAMW_BYTES_PER_PARAMETER, kernel_seconds
from profiles.machines.profile import Collective, MachineProfile
from profiles.models.profile import MIXED

Array = NDArray[np.float64]
# Timings that spread more than this are left alone: 0.6 and 0.94 were seen where other work ran beside, 0.3 without.
NOISY_FRACTION = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Seconds that the gradient exchange adds to a step. Shapes: (plan,)."""

    exposed: Array
    codec: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exchanged:
    """Gradients of some stages, and what computes beside them. Shapes: (stage, plan)."""

    num_parameters: Array
    matrix_sides: Array
    num_vectors: Array
    forward_busy: Array
    backward_busy: Array
    num_microbatches: Array
    gathered_bytes: Array


def gradient_seconds(machine: MachineProfile, table: PlanTable, stages: StageCosts) -> Exchange:
    """Exposed seconds of the gradient exchange and of its codec, on the stage where they are longest.

    Model: buckets of 25 MiB go out while backward of the last micro-batch runs; the last bucket is complete only when
    backward is, so it is exposed whole. ZeRO stages 1 and 2 reduce-scatter gradients and all-gather parameters, stage 3
    gathers parameters in forward and backward of every micro-batch as well. Where the exchange was timed in the midst
    of training, what it took there more or less than this is carried over.
    Ignores: the order in which layers fill buckets.
    """
    exposed, coding = np.zeros(len(table)), np.zeros(len(table))
    stride = np.where(table.axis_order == 0, 1, table.pipeline_parallel) * table.tensor_parallel
    keys = np.stack([table.data_parallel, table.zero_stage, table.codec, stride], axis=1)
    low_bytes = GRADIENT_BYTES / 2 if table.precision in MIXED else GRADIENT_BYTES
    distinct, inverse = np.unique(keys, axis=0, return_inverse=True)
    for index, (degree, zero, code, step) in enumerate(distinct):
        rows = np.flatnonzero(inverse.reshape(-1) == index)
        if degree == 1:
            continue
        group = group_of(int(degree), int(step), machine.devices_per_node)
        own = _Exchanged(
            num_parameters=stages.num_parameters[:, rows],
            matrix_sides=stages.matrix_sides[:, rows],
            num_vectors=stages.num_vectors[:, rows],
            forward_busy=stages.forward_busy[:, rows],
            backward_busy=stages.backward_busy[:, rows],
            num_microbatches=table.num_microbatches[rows].astype(float),
            gathered_bytes=stages.num_parameters[:, rows] * low_bytes,
        )
        name = table.codec_names[code]
        added, encode = _law(machine, group, name, int(zero), own)
        total = _corrected(machine, group, name, int(zero), own.num_parameters, added + encode)
        coding[rows] = np.minimum(encode, total).max(axis=0)
        exposed[rows] = total.max(axis=0) - coding[rows]
    return Exchange(exposed=exposed, codec=coding)


def _corrected(
    machine: MachineProfile, group: Group, name: str, zero: int, num_parameters: Array, total: Array
) -> Array:
    """`total` seconds by the law, corrected by a timing of the same exchange in the midst of training.

    DDP, and the sending of weights after it, is off by so many seconds per parameter, which the backward pass cannot
    hide; where the sending was not timed, DDP's own are. FSDP2 on CPU is off by a factor, since all of it is serial;
    on GPUs, where most of it is hidden, nothing is carried over.
    """
    if zero in FSDP_STAGES and machine.device_kind != "cpu":
        return total
    cases = [("none", zero)] if zero in FSDP_STAGES else [(name, how) for how in range(zero, -1, -1)]
    calm = {(t.codec, t.zero_stage): t for t in machine.exchange_timings if t.spread_fraction < NOISY_FRACTION}
    timing = next((calm[case] for case in cases if case in calm), None)
    timed_group = None if timing is None else group_of(timing.group_size, 1, machine.devices_per_node)
    is_alike = timed_group is not None and (timed_group.inside == timed_group.size) == (group.inside == group.size)
    if timing is None or timed_group is None or not is_alike:
        return total
    one = np.ones((1, 1))
    case = _Exchanged(
        num_parameters=timing.num_parameters * one,
        matrix_sides=timing.matrix_sides * one,
        num_vectors=0 * one,
        forward_busy=timing.backward_seconds / 2 * one,
        backward_busy=timing.backward_seconds * one,
        num_microbatches=np.ones(1),
        gathered_bytes=GRADIENT_BYTES * timing.num_parameters * one,
    )
    expected = float(np.sum(_law(machine, timed_group, timing.codec, timing.zero_stage, case)))
    if zero in FSDP_STAGES:
        return total * max(0.0, timing.added_seconds) / expected
    return np.maximum(0.0, total + (timing.added_seconds - expected) / timing.num_parameters * num_parameters)


def _law(machine: MachineProfile, group: Group, name: str, zero: int, own: _Exchanged) -> tuple[Array, Array]:
    """Seconds that messages add to a step, and those of the codec's own work. Shapes: both (stage, plan)."""
    used = codec(name)
    buckets = _Buckets(machine, group, own.num_parameters, used.is_bucketed)
    encode = _codec_seconds(machine, name, own.num_parameters, buckets.count, group.size)
    wire = np.asarray(used.wire_bytes(own.num_parameters, own.matrix_sides, own.num_vectors))
    backward = own.backward_busy
    if used.gathered:
        return buckets.hidden_behind(backward, "all_gather", wire * group.size), encode
    if zero in FSDP_STAGES and machine.device_kind == "cpu":
        return _serial_seconds(machine, buckets, wire, own, zero), encode
    added = buckets.hidden_behind(backward, "reduce_scatter" if zero >= 2 else "all_reduce", wire)
    if zero in (1, 2):
        added = added + buckets.seconds("all_gather", GRADIENT_BYTES * own.num_parameters)
    if zero == max(FSDP_STAGES):
        gather = buckets.seconds("all_gather", own.gathered_bytes)
        all_busy = (own.forward_busy + backward) * own.num_microbatches
        # The first layers' parameters are there before anything can run.
        added = added + exposed_seconds(machine, 2 * gather * own.num_microbatches, all_busy) + gather / buckets.count
    return np.asarray(added), encode


def _serial_seconds(machine: MachineProfile, buckets: _Buckets, num_bytes: Array, own: _Exchanged, zero: int) -> Array:
    """What FSDP2 sends on CPU, where nothing hides it, since its overlap is made of CUDA streams.

    Model: gradients are scattered after every micro-batch; parameters are gathered twice for each (stage 3) or once a
    step (stage 2), in the precision of the passes; every message is copied in and out.
    """
    count = own.num_microbatches
    gathers = 2 * count if zero == max(FSDP_STAGES) else np.ones_like(count)
    messages = count * buckets.seconds("reduce_scatter", num_bytes)
    messages = messages + gathers * buckets.seconds("all_gather", own.gathered_bytes)
    copied = count * num_bytes + gathers * own.gathered_bytes
    return np.asarray(messages + 2 * copied / machine.memory_bytes_per_second)


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
