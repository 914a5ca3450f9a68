"""What one micro-batch of each distinct layer costs, for every combination of micro-batch and tensor degree at once.

A layer is the sum of its kernels on the machine's curves. Where the machine profile holds the time of the real layer,
that time replaces the sum at the measured sizes and corrects it in proportion at others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.measured.collectives import Group, collective_seconds
from profiles.errors import InputError
from profiles.laws.curves import kernel_seconds
from profiles.machines.profile import KernelCurve, LayerTiming, MachineProfile
from profiles.models.operators import PHASES, Operator, Phase, Polynomial, evaluate
from profiles.models.profile import LayerProfile, ModelProfile

Array = NDArray[np.float64]
# Adding a parameter's gradient to what earlier micro-batches left, or to DDP's bucket: two reads and a write of fp32.
ACCUMULATE_BYTES = 12.0
CONCRETE_KIND = {("attention", "forward"): "attention_forward", ("attention", "backward"): "attention_backward"}
# Standard error of compute. From timed layers: 7.7 % root mean square over the README's five runs on two CPU ranks,
# rounded up, so that how many of those lie inside their band is in sample. From kernels run alone and from a data
# sheet: assumed.
TIMED_ERROR_FRACTION, CURVE_ERROR_FRACTION, DATASHEET_ERROR_FRACTION = 0.08, 0.15, 0.30


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCosts:
    """Seconds and bytes of each distinct layer. Shapes: every array is (distinct layers, combinations)."""

    seconds: dict[Phase, Array]
    host_seconds: dict[Phase, Array]
    tensor_comm_seconds: dict[Phase, Array]
    num_parameters: Array
    matrix_sides: Array
    num_vectors: Array
    input_bytes: Array
    output_bytes: Array
    saved_bytes: Array
    peak_bytes: dict[Phase, Array]
    error_fraction: float
    comm_error_fraction: float
    provenance: str


def layer_costs(
    machine: MachineProfile,
    model: ModelProfile,
    precision: str,
    batches: Array,
    sequence: int,
    degrees: Array,
) -> LayerCosts:
    """Costs at each (micro-batch, tensor degree) pair of `batches` and `degrees`, which are equally long."""
    layers = model.precision_layers(precision)
    seconds: dict[Phase, Array] = {}
    host: dict[Phase, Array] = {}
    comm: dict[Phase, Array] = {}
    timed = False
    comm_error = 0.0
    for phase in PHASES:
        rows = [_phase_seconds(machine, layer, phase, batches, sequence, degrees) for layer in layers]
        kernels = np.stack([row[0] for row in rows])
        host[phase] = np.stack([row[1] for row in rows])
        correction, timed = _correction(machine, model, layers, phase, precision, batches, sequence, degrees, kernels)
        seconds[phase] = kernels * correction
        comm[phase], error = _message_seconds(machine, layers, phase, batches, sequence, degrees)
        comm_error = max(comm_error, error)

    def at(polynomials: list[Polynomial]) -> Array:
        return np.stack([evaluate(polynomial, batches, sequence, degrees) for polynomial in polynomials])

    error, provenance = _provenance(machine, timed)
    return LayerCosts(
        seconds=seconds,
        host_seconds=host,
        tensor_comm_seconds=comm,
        num_parameters=at([layer.num_parameters for layer in layers]),
        matrix_sides=at([layer.matrix_sides for layer in layers]),
        num_vectors=at([layer.num_vector_parameters for layer in layers]),
        input_bytes=at([layer.input_bytes for layer in layers]),
        output_bytes=at([layer.output_bytes for layer in layers]),
        saved_bytes=at([layer.saved_bytes for layer in layers]),
        peak_bytes={
            "forward": at([layer.forward_peak_bytes for layer in layers]),
            "backward": at([layer.backward_peak_bytes for layer in layers]),
        },
        error_fraction=error,
        comm_error_fraction=comm_error,
        provenance=provenance,
    )


def find_curve(machine: MachineProfile, kind: str, name: str, precision: str) -> KernelCurve:
    """The machine's curve for a kernel: by name and precision, else the general one of its kind, else that of fp32.

    Raises: InputError where the machine has neither; another kernel's curve would be a guess.
    """
    curves = {(curve.name, curve.precision): curve for curve in machine.kernels if curve.kind == kind}
    for wanted in ((name, precision), ("", precision), (name, "fp32"), ("", "fp32")):
        if wanted in curves:
            return curves[wanted]
    known = ", ".join(sorted({word or "general" for word, _ in curves})) or "none"
    raise InputError(
        f"machine {machine.name} was not measured for {kind} {name or 'kernels'} in {precision} (measured: {known}): "
        "profile it again, or leave this choice out"
    )


def _phase_seconds(
    machine: MachineProfile, layer: LayerProfile, phase: Phase, batches: Array, sequence: int, degrees: Array
) -> tuple[Array, Array]:
    """Seconds of the kernels of one phase, and host seconds that the device waits beside them.

    Model: kernels queue on an asynchronous device, so a phase takes the longer of its kernels and its launches; on a
    CPU the launch is part of every kernel. DTensor's own work is added per split linear where there are several ranks.
    """
    operators = layer.of_phase(phase)
    groups: dict[tuple[str, str, str], list[Operator]] = {}
    for op in operators:
        groups.setdefault((CONCRETE_KIND.get((op.kind, phase), op.kind), _curve_name(op), op.dtype), []).append(op)
    total = np.zeros_like(batches)
    for (kind, name, dtype), members in groups.items():
        curve = find_curve(machine, kind, name, dtype)
        flops = np.stack([evaluate(op.flops, batches, sequence, degrees) for op in members])
        moved = np.stack([evaluate(op.moved_bytes, batches, sequence, degrees) for op in members])
        if kind == "memory":
            dims = [moved]
        else:
            columns = range(len(members[0].dims))
            dims = [np.stack([evaluate(op.dims[i], batches, sequence, degrees) for op in members]) for i in columns]
        total = total + kernel_seconds(curve, flops, moved, dims).sum(axis=0)
    if phase == "backward":
        held = evaluate(layer.num_parameters, batches, sequence, degrees)
        total = total + held * ACCUMULATE_BYTES / machine.memory_bytes_per_second
    host = np.zeros_like(batches)
    if machine.device_kind != "cpu":
        host = np.maximum(0.0, len(operators) * machine.launch_seconds - total)
    share = 1 / 3 if phase == "forward" else 2 / 3
    host = host + np.where(degrees > 1, share * layer.num_parallel_linears * machine.parallel_linear_seconds, 0.0)
    return total, host


def _curve_name(op: Operator) -> str:
    return {"matmul": op.layout, "attention": "", "memory": op.name}[op.kind]


def _message_seconds(
    machine: MachineProfile,
    layers: tuple[LayerProfile, ...],
    phase: Phase,
    batches: Array,
    sequence: int,
    degrees: Array,
) -> tuple[Array, float]:
    """Seconds of the tensor-parallel messages; the tensor axis is priced as neighbouring ranks of one node."""
    result = np.zeros((len(layers), len(batches)))
    worst = 0.0
    for degree in np.unique(degrees):
        where = degrees == degree
        group = Group(int(degree), int(min(degree, machine.devices_per_node)))
        for row, layer in enumerate(layers):
            for message in layer.messages if degree > 1 else ():
                if message.phase != phase:
                    continue
                num_bytes = evaluate(message.num_bytes, batches[where], sequence, degree)
                seconds, error = collective_seconds(machine, "all_reduce", num_bytes, group)
                result[row, where] += seconds + num_bytes * machine.parallel_message_seconds_per_byte
                worst = max(worst, error)
    return result, worst


def _correction(
    machine: MachineProfile,
    model: ModelProfile,
    layers: tuple[LayerProfile, ...],
    phase: Phase,
    precision: str,
    batches: Array,
    sequence: int,
    degrees: Array,
    kernels: Array,
) -> tuple[Array, bool]:
    """Measured over summed seconds of each layer, from the timed size nearest to each combination."""
    result = np.ones_like(kernels)
    timed = False
    for row, layer in enumerate(layers):
        timings = [
            timing
            for timing in machine.layer_timings
            if (timing.workload, timing.layer, timing.precision) == (model.workload.digest, layer.name, precision)
        ]
        if not timings:
            continue
        timed = True
        sizes = np.array([_size(t.micro_batch_size, t.sequence_length, t.tensor_parallel) for t in timings])
        ratios = np.array([_ratio(machine, layer, phase, timing) for timing in timings])
        wanted = np.stack([_size(b, sequence, t) for b, t in zip(batches, degrees, strict=True)])
        distance = np.abs(wanted[:, None, :] - sizes[None, :, :]).sum(axis=2)
        result[row] = ratios[np.argmin(distance, axis=1)]
    return result, timed


def _size(batch: float, sequence: float, degree: float) -> Array:
    # Another tensor degree is another set of shapes: prefer a timing of the same degree at another micro-batch.
    return np.array([np.log(batch), np.log(sequence), 4 * np.log(degree)])


def _ratio(machine: MachineProfile, layer: LayerProfile, phase: Phase, timing: LayerTiming) -> float:
    batch, degree = np.array([float(timing.micro_batch_size)]), np.array([float(timing.tensor_parallel)])
    summed = _phase_seconds(machine, layer, phase, batch, timing.sequence_length, degree)[0][0]
    measured = timing.forward_seconds if phase == "forward" else timing.backward_seconds
    return float(measured / summed) if summed > 0 else 1.0


def _provenance(machine: MachineProfile, timed: bool) -> tuple[float, str]:
    if machine.origin == "datasheet":
        return DATASHEET_ERROR_FRACTION, "data sheet"
    if timed:
        return TIMED_ERROR_FRACTION, "layers timed on this machine"
    return CURVE_ERROR_FRACTION, "kernels timed on this machine"
