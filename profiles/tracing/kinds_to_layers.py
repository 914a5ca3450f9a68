"""Segments of runs at several sizes, put together into one layer whose numbers are polynomials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from profiles.models.operators import Operator, Phase, Polynomial, constant
from profiles.models.polynomials import Grid
from profiles.models.profile import LayerProfile
from profiles.tracing.operator_recorder import RecordedOperator
from profiles.tracing.segments import Run, Segment


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
        matrix_sides=constant(sum(shape[0] + math.prod(shape[1:]) for shape in base.shapes if len(shape) > 1)),
        num_vector_parameters=constant(vectors),
        operators=_operators(versions, grid),
        input_bytes=grid.fit([version.input_bytes for version in versions]),
        output_bytes=grid.fit([version.output_bytes for version in versions]),
        saved_bytes=grid.fit([version.saved_bytes for version in versions]),
        forward_peak_bytes=peak("forward"),
        backward_peak_bytes=peak("backward"),
    )


def _operators(versions: Sequence[Segment], grid: Grid) -> tuple[Operator, ...]:
    """The kernels of a segment; where a loop runs more of them in a larger batch, each of them stands for more."""
    base = versions[0]
    if all(version.signature == base.signature for version in versions):
        rows = zip(*(zip(version.operators, version.saved, strict=True) for version in versions), strict=True)
        return tuple(_operator(op[0][0], [v for v, _ in op], [saved for _, saved in op], grid) for op in rows)
    groups = [_grouped(version) for version in versions]
    seen: Counter[tuple[str, ...]] = Counter()
    made = []
    for op in base.operators:
        place, count = seen[op.signature], len(groups[0][op.signature])
        seen[op.signature] += 1
        own = [_in_place(op, place, count, group.get(op.signature, [])) for group in groups]
        made.append(_operator(op, own, (), grid))
    return tuple(made)


def _grouped(segment: Segment) -> dict[tuple[str, ...], list[RecordedOperator]]:
    found: dict[tuple[str, ...], list[RecordedOperator]] = {}
    for op in segment.operators:
        found.setdefault(op.signature, []).append(op)
    return found


def _in_place(op: RecordedOperator, place: int, count: int, others: Sequence[RecordedOperator]) -> RecordedOperator:
    """What another run has in the place of a kernel: the one that it is, or its share of all that are like it."""
    if len(others) == count:
        return others[place]
    dims: tuple[Any, ...] = op.dims
    if op.flops:
        dims = (Fraction(op.dims[0] * sum(other.flops for other in others), count * op.flops), *op.dims[1:])
    return replace(
        op,
        dims=dims,
        read_bytes=sum(other.read_bytes for other in others) // count,
        written_bytes=sum(other.written_bytes for other in others) // count,
    )


def _operator(op: RecordedOperator, versions: Sequence[RecordedOperator], saved: Sequence[int], grid: Grid) -> Operator:
    return Operator(
        name=op.name,
        kind=op.kind,
        phase=op.phase,
        path=op.path,
        dtype=op.dtype,
        layout=op.layout,
        dims=tuple(grid.fit(values) for values in zip(*(version.dims for version in versions), strict=True)),
        read_bytes=grid.fit([version.read_bytes for version in versions]),
        written_bytes=grid.fit([version.written_bytes for version in versions]),
        saved_bytes=grid.fit(saved),
        inputs=op.inputs,
    )
