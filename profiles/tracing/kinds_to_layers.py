"""Segments of runs at several sizes, put together into one layer whose numbers are polynomials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from profiles.models.layer_profile import LayerProfile, Message
from profiles.models.operators import Operator, Phase, Polynomial, constant
from profiles.models.polynomials import Grid
from profiles.tracing.operator_recorder import RecordedOperator
from profiles.tracing.segments import Run, Segment

Fit = Callable[[Sequence[int]], Polynomial]


def layer_of(name: str, position: int, runs: Sequence[Run], grid: Grid) -> LayerProfile:
    """The layer that a segment is. Shapes: a run for each point of the grid."""
    versions = [run.segments[position] for run in runs]
    base = versions[0]
    sizes = [math.prod(shape) for shape in base.shapes]
    vectors = sum(size for size, shape in zip(sizes, base.shapes, strict=True) if len(shape) < 2)

    def peak(phase: Phase) -> Polynomial:
        return grid.fit([run.peak(position, phase, runs[0]) for run in runs])

    return LayerProfile(
        name=name,
        num_parameters=constant(sum(sizes)),
        num_parameter_tensors=len(sizes),
        num_frozen_parameters=constant(base.frozen),
        matrix_sides=constant(sum(shape[0] + math.prod(shape[1:]) for shape in base.shapes if len(shape) > 1)),
        num_vector_parameters=constant(vectors),
        operators=_operators(versions, grid),
        input_bytes=grid.fit([version.input_bytes for version in versions]),
        output_bytes=grid.fit([version.output_bytes for version in versions]),
        saved_bytes=grid.fit([version.saved_bytes for version in versions]),
        forward_peak_bytes=peak("forward"),
        backward_peak_bytes=peak("backward"),
        messages=_messages(versions, grid),
        num_parallel_linears=len(base.messages),
    )


def _messages(versions: Sequence[Segment], grid: Grid) -> tuple[Message, ...]:
    """What a rank of several sums with others."""
    return tuple(
        Message(phase=sent[0][0], collective="all_reduce", num_bytes=grid.fit([num_bytes for _, num_bytes in sent]))
        for sent in zip(*(version.messages for version in versions), strict=True)
    )


def _operators(versions: Sequence[Segment], grid: Grid) -> tuple[Operator, ...]:
    """The kernels of a segment; where a loop runs more of them in a larger batch, each of them stands for more."""
    base = versions[0]
    if all(version.signature == base.signature for version in versions):
        rows = zip(*(zip(version.operators, version.saved, strict=True) for version in versions), strict=True)
        return tuple(operator_of([v for v, _ in op], grid.fit, grid.fit([saved for _, saved in op])) for op in rows)
    groups = [_grouped(version) for version in versions]
    seen: Counter[tuple[str, ...]] = Counter()
    made = []
    for op in base.operators:
        signature = op.signature
        place, count = seen[signature], len(groups[0][signature].operators)
        seen[signature] += 1
        own = [_in_place(op, place, count, group.get(signature, NONE)) for group in groups]
        made.append(operator_of(own, grid.fit, ()))
    return tuple(made)


@dataclass(slots=True)
class _Group:
    """Kernels of a segment that are alike but for their sizes, and the sums of those."""

    operators: list[RecordedOperator]
    flops: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


NONE = _Group([])


def _grouped(segment: Segment) -> dict[tuple[str, ...], _Group]:
    found: dict[tuple[str, ...], _Group] = {}
    for op in segment.operators:
        own = found.setdefault(op.signature, _Group([]))
        own.operators.append(op)
        own.flops += op.flops
        own.read_bytes += op.read_bytes
        own.written_bytes += op.written_bytes
    return found


def _in_place(op: RecordedOperator, place: int, count: int, others: _Group) -> RecordedOperator:
    """What another run has in the place of a kernel: the one that it is, or its share of all that are like it."""
    if len(others.operators) == count:
        return others.operators[place]
    dims: tuple[Any, ...] = op.dims
    if op.flops:
        dims = (Fraction(op.dims[0] * others.flops, count * op.flops), *op.dims[1:])
    return replace(op, dims=dims, read_bytes=others.read_bytes // count, written_bytes=others.written_bytes // count)


def operator_of(versions: Sequence[RecordedOperator], fitted: Fit, saved_bytes: Polynomial) -> Operator:
    """A kernel whose numbers are `fitted` to those that runs of several sizes gave."""
    op = versions[0]
    return Operator(
        name=op.name,
        kind=op.kind,
        phase=op.phase,
        path=op.path,
        dtype=op.dtype,
        layout=op.layout,
        dims=tuple(fitted(values) for values in zip(*(version.dims for version in versions), strict=True)),
        read_bytes=fitted([version.read_bytes for version in versions]),
        written_bytes=fitted([version.written_bytes for version in versions]),
        saved_bytes=saved_bytes,
        inputs=op.inputs,
    )


def unique_names(names: Sequence[str]) -> list[str]:
    """Names of layers, numbered where several have one."""
    return [name if names.count(name) == 1 else f"{name}_{names[:i].count(name)}" for i, name in enumerate(names)]
