"""Traces any workload into a ModelProfile: layers of operators whose sizes are polynomials.

Each distinct layer runs forward and backward under fake tensors (no weights, no device) at a few sizes that differ in
one thing at a time: micro-batch, sequence length, tensor-parallel degree. The same kernels run in the same order at
every size, so each number of a kernel is fitted by its exponents. Fake CPU tensors take PyTorch's fused CPU attention,
which saves what fused attention saves on every device (q, k, v, output and one fp32 number per query), where the meta
device falls back to a decomposition that saves the whole score matrix.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

import torch
from torch import Tensor, nn

from profiles.errors import InputError
from profiles.models.layer_profile import LayerProfile, Message
from profiles.models.operators import PHASES, Phase, Polynomial, add, constant, multiply
from profiles.models.polynomials import Size, fit
from profiles.models.profile import USUAL_PRECISIONS, ModelProfile
from profiles.tracing.kinds_to_layers import operator_of, unique_names
from profiles.tracing.operator_recorder import Recorder, Recording
from profiles.workloads.blocks import shrink_to_shard
from profiles.workloads.experts import holds_experts
from profiles.workloads.fake_tensors import FakeTensorMode
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.precision import autocast, lower
from profiles.workloads.workload import LayerSpec, Workload

Outcome = tuple[Recording, Tensor, nn.Module]


def trace(workload: Workload, precisions: Sequence[str] = USUAL_PRECISIONS) -> ModelProfile:
    """The profile of `workload` at each precision, over fp32 parameters.

    Raises: InputError where a layer does not run, or runs other kernels at another size.
    """
    sizes = _sizes(workload)
    recorded = {precision: [_record_layers(workload, precision, size) for size in sizes] for precision in precisions}
    structure = _common_structure([structure for runs in recorded.values() for _, structure in runs])
    layers = {precision: _merge_layers(workload, sizes, runs, structure) for precision, runs in recorded.items()}
    return ModelProfile(
        name=workload.spec.name,
        workload=workload.spec,
        hidden_size=workload.hidden_size,
        num_heads=workload.num_heads,
        num_kv_heads=workload.num_kv_heads,
        ffn_size=workload.ffn_size,
        vocab_size=workload.vocab_size,
        max_sequence_length=workload.max_sequence_length,
        tied_embeddings=workload.tied_embeddings,
        can_tensor_parallel=_smallest_degree(workload) > 1,
        can_pipeline=workload.can_pipeline,
        structure=structure,
        layers=layers,
        traced_with=f"torch {torch.__version__}",
        num_experts=workload.num_experts,
        experts_per_token=workload.experts_per_token,
        num_shared=workload.num_shared,
    )


def _sizes(workload: Workload) -> tuple[Size, ...]:
    longest = workload.max_sequence_length or 192
    sequence = max(2, min(128, longest * 2 // 3) // 2 * 2)
    base = (2, sequence, 1)
    sizes = (base, (3, sequence, 1), (2, sequence * 3 // 2, 1))
    degree = _smallest_degree(workload)
    return (*sizes, (2, sequence, degree)) if degree > 1 else sizes


def _smallest_degree(workload: Workload) -> int:
    """The smallest tensor-parallel degree above 1 that is legal for this workload, or 1 where none is."""
    common = math.gcd(workload.num_heads, workload.num_kv_heads, workload.ffn_size)
    if not workload.can_tensor_parallel:
        return 1
    return next((degree for degree in range(2, common + 1) if common % degree == 0), 1)


def _common_structure(structures: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """For each position, which distinct layer stands there: layers are alike that are alike at every precision.

    The embedding's output is fp32 at every precision and a block's is not, so that the first of equal blocks is another
    layer than the second under bf16 alone.
    """
    known: dict[tuple[int, ...], int] = {}
    return tuple(known.setdefault(alike, len(known)) for alike in zip(*structures, strict=True))


def _merge_layers(
    workload: Workload,
    sizes: tuple[Size, ...],
    runs: Sequence[tuple[list[Outcome], tuple[int, ...]]],
    structure: tuple[int, ...],
) -> tuple[LayerProfile, ...]:
    """The distinct layers of `structure`, from what each size recorded at one precision."""
    if any(other != runs[0][1] for _, other in runs):
        raise InputError(f"model {workload.spec.name}: which layers are equal depends on the input's size")
    first = [structure.index(index) for index in range(max(structure) + 1)]
    names = unique_names([workload.layers[position].name for position in first])
    return tuple(
        _merge(name, workload.layers[position], sizes, [outcomes[at[position]] for outcomes, at in runs])
        for name, position in zip(names, first, strict=True)
    )


def _record_layers(workload: Workload, precision: str, size: Size) -> tuple[list[Outcome], tuple[int, ...]]:
    """Run each distinct layer once at `size`; a layer is known by its class, parameter shapes, splits and input."""
    batch, sequence, degree = size
    distinct: dict[tuple[object, ...], int] = {}
    outcomes: list[Outcome] = []
    structure = []
    with FakeTensorMode(), torch.device("cpu"):
        with foreign_code(workload.spec, f"{workload.spec.title}: its example_input fails"):
            value = _tensor(workload, "example_input", workload.example_input(batch, sequence))
        trains = not workload.spec.adapters.freezes
        for position, spec in enumerate(workload.layers):
            last = position == len(workload.layers) - 1
            layer = workload.build_layer(position)
            with foreign_code(workload.spec, f"{workload.spec.title}: layer {spec.name} cannot be split or lowered"):
                layer = lower(shrink_to_shard(layer, spec.styles, degree), precision, last)
            shapes = tuple(tuple(parameter.shape) for parameter in layer.parameters())
            # The data needs no gradient, what a layer hands on does if any before is trained; the last has the loss.
            value.requires_grad_(position > 0 and trains and value.is_floating_point())
            trains = trains or any(parameter.requires_grad for parameter in layer.parameters())
            key = (type(layer), shapes, tuple(spec.styles), tuple(value.shape), value.dtype, value.requires_grad, last)
            if key not in distinct:
                distinct[key] = len(outcomes)
                with foreign_code(
                    workload.spec,
                    f"{workload.spec.title}: layer {spec.name}{' or its loss' if last else ''} does not run",
                ):
                    outcomes.append(_record(workload, layer, value, precision, last))
            structure.append(distinct[key])
            output = outcomes[distinct[key]][1]
            value = torch.empty(output.shape, dtype=output.dtype)
    return outcomes, tuple(structure)


def _record(workload: Workload, layer: nn.Module, value: Tensor, precision: str, last: bool) -> Outcome:
    recorder = Recorder(layer, products="tf32" if precision == "tf32" else "fp32")
    target = workload.example_targets(value)
    with recorder.watch():
        recorder.adopt(value)
        with autocast(precision, "cpu"):
            output = _tensor(workload, f"layer {type(layer).__name__}", layer(value))
            if last:
                loss = _tensor(workload, "loss", workload.loss(output, target))
        recorder.phase = "backward"
        if last:
            loss.backward()
        elif output.requires_grad:
            gradient = torch.empty_like(output)
            recorder.adopt(gradient)
            output.backward(gradient)
    recorder.forget(parameter.grad for parameter in layer.parameters())
    return recorder.recording, output.detach(), layer


def _tensor(workload: Workload, what: str, value: object) -> Tensor:
    """The value, which has to be a tensor."""
    if not isinstance(value, Tensor):
        raise InputError(f"{workload.spec.title}: its {what} gave a {type(value).__name__}: it must give one tensor")
    return value


def _merge(name: str, spec: LayerSpec, sizes: tuple[Size, ...], outcomes: list[Outcome]) -> LayerProfile:
    """One LayerProfile from the recordings of one layer at all sizes."""
    base = outcomes[0][0]
    recordings = [
        base if index == 0 else _aligned(name, base, other, size[2])
        for index, ((other, _, _), size) in enumerate(zip(outcomes, sizes, strict=True))
    ]
    storages = tuple(
        fit(sizes, values) for values in zip(*(recording.storage_bytes for recording in recordings), strict=True)
    )
    saved = base.saved

    def each(indices: Iterable[int]) -> Polynomial:
        return add(*(storages[index] for index in indices))

    def total(indices: Iterable[int]) -> Polynomial:
        return add(*(multiply(constant(base.copies.get(index, 1)), storages[index]) for index in indices))

    operators = tuple(
        operator_of(
            versions, functools.partial(fit, sizes), each([index for index in versions[0].outputs if index in saved])
        )
        for versions in zip(*(recording.operators for recording in recordings), strict=True)
    )
    # A frozen embedding has no backward pass.
    peaks = {phase: total(base.peaks[0, phase][1] if (0, phase) in base.peaks else ()) for phase in PHASES}
    modules = [module for _, _, module in outcomes]
    parameters = [[parameter.shape for parameter in module.parameters()] for module in modules]
    return LayerProfile(
        name=name,
        num_parameters=fit(sizes, [sum(shape.numel() for shape in shapes) for shapes in parameters]),
        num_parameter_tensors=len(parameters[0]),
        matrix_sides=fit(sizes, [_sides(shapes) for shapes in parameters]),
        num_vector_parameters=fit(sizes, [sum(s.numel() for s in shapes if len(s) < 2) for shapes in parameters]),
        num_frozen_parameters=fit(sizes, [_num_frozen(module) for module in modules]),
        num_expert_parameters=fit(sizes, [_expert_parameters(module) for module in modules]),
        num_parallel_linears=len(spec.styles),
        operators=operators,
        input_bytes=storages[0],
        output_bytes=fit(sizes, [output.numel() * output.element_size() for _, output, _ in outcomes]),
        saved_bytes=total(saved),
        forward_peak_bytes=peaks["forward"],
        backward_peak_bytes=peaks["backward"],
        messages=_messages(spec, sizes, recordings),
    )


def _aligned(name: str, base: Recording, other: Recording, degree: int) -> Recording:
    """`other` with the kernels and storages of `base`, so that the two can be compared number by number.

    A shard with a single key-value head skips a few copies that the whole layer makes: those are taken to shrink with
    the degree. At another micro-batch or sequence length nothing may differ.
    """
    ours, theirs = ([op.signature for op in recording.operators] for recording in (base, other))
    if ours == theirs and len(base.storage_bytes) == len(other.storage_bytes):
        return other
    if degree == 1:
        raise InputError(f"layer {name} runs other kernels at another size: it cannot be traced")
    partner = {
        block.a + offset: block.b + offset
        for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
        for offset in range(block.size)
    }
    storages = [num_bytes // degree for num_bytes in base.storage_bytes]
    for mine, its in zip(base.adopted, other.adopted, strict=True):
        storages[mine] = other.storage_bytes[its]
    operators = []
    for index, op in enumerate(base.operators):
        if index in partner:
            match = other.operators[partner[index]]
            for mine, its in zip(op.outputs, match.outputs, strict=False):
                storages[mine] = other.storage_bytes[its]
            operators.append(match)
        else:
            dims = (*op.dims[:1], *(dim // degree for dim in op.dims[1:2]), *op.dims[2:])
            operators.append(
                replace(op, dims=dims, read_bytes=op.read_bytes // degree, written_bytes=op.written_bytes // degree)
            )
    return replace(other, operators=operators, storage_bytes=storages)


def _num_frozen(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters() if not parameter.requires_grad)


def _expert_parameters(layer: nn.Module) -> int:
    owners = (module for module in layer.modules() if holds_experts(module))
    return sum(parameter.numel() for owner in owners for parameter in owner.parameters())


def _sides(shapes: Sequence[torch.Size]) -> int:
    """Rows plus columns of all matrices: what a rank-1 approximation of their gradients holds."""
    return sum(shape[0] + shape[1:].numel() for shape in shapes if len(shape) > 1)


def _messages(spec: LayerSpec, sizes: tuple[Size, ...], recordings: list[Recording]) -> tuple[Message, ...]:
    """What DTensor sends: each row-wise linear reduces its output, each column-wise one its input's gradient."""
    messages = []
    for versions in zip(*(recording.linears for recording in recordings), strict=True):
        style = spec.styles.get(versions[0][0])
        if style is None:
            continue
        phase: Phase = "forward" if style == "rowwise" else "backward"
        column = 2 if style == "rowwise" else 1
        num_bytes = fit(sizes, [version[column] for version in versions])
        messages.append(Message(phase=phase, collective="all_reduce", num_bytes=num_bytes))
    return tuple(messages)
