"""Over how many tensor-parallel ranks the module of a task is split, and its layers as functions of that degree.

What a layer has on a rank is a constant and a part in proportion to 1 / degree, as one rank of two showed. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from profiles.artifacts import STRICT
from profiles.inputs.ranges import Count
from profiles.models.operators import Operator, Polynomial, add, constant, multiply

# Degrees that a task may be split over.
DEGREES = (2, 4, 8)
# 0 at degree 1, and 1 at all of `DEGREES`.
SEVERAL: Polynomial = ((22 / 21, 0, 0, 0), (-2 / 3, 0, 0, -1), (8 / 3, 0, 0, -2), (-64 / 21, 0, 0, -3))
# Among so many products the one is looked for that another is.
NEAR = 4
SIZES = (
    "num_parameters", "matrix_sides", "num_vector_parameters", "input_bytes", "output_bytes", "saved_bytes",
    "forward_peak_bytes", "backward_peak_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitting:
    """The `degrees` over which a module's linears are split in pairs; `refusal` says why there are none."""

    __pydantic_config__ = STRICT

    degrees: tuple[Count, ...] = ()
    refusal: str = ""


def over_degrees(one: Polynomial, two: Polynomial) -> Polynomial:
    """A size that is `one` on a single rank, and `two` on one of two: a constant and a part that the ranks share."""
    shared = multiply(constant(2), add(one, multiply(constant(-1), two)))
    rest = add(one, multiply(constant(-1), shared))
    return add(rest, multiply(((1.0, 0, 0, -1),), shared))


def operators_over_degrees(one: Sequence[Operator], two: Sequence[Operator]) -> tuple[Operator, ...] | None:
    """The operators of a layer on a single rank with their sizes on a rank of several; None where products differ.

    Model: an operator that ranks alone run counts with the one before it, one that they do not run shrinks.
    """
    ours, theirs = _between_products(one), _between_products(two)
    made = _aligned(ours[0], theirs.pop(0))
    for own in ours[1:]:
        # The two products of a backward pass may come in either order.
        able = [place for place, its in enumerate(theirs[:NEAR]) if _product(its[0]) == _product(own[0])]
        if not able:
            return None
        best = min(able, key=lambda place: (not _is_part(own[0], theirs[place][0]), place))
        made += _aligned(own, theirs.pop(best))
    return None if theirs else tuple(made)


def _between_products(operators: Sequence[Operator]) -> list[list[Operator]]:
    """Those before the first product, and each product with those behind it."""
    groups: list[list[Operator]] = [[]]
    for op in operators:
        if op.kind != "memory":
            groups.append([])
        groups[-1].append(op)
    return groups


def _product(op: Operator) -> tuple[str, ...]:
    return op.kind, op.phase, op.path, op.dtype


def _is_part(one: Operator, two: Operator) -> bool:
    """Whether a product is the other one or has half of some of its dimensions."""
    twice = constant(2)
    return one.layout == two.layout and all(
        own in (its, multiply(twice, its)) for own, its in zip(one.dims, two.dims, strict=True)
    )


def _aligned(ours: list[Operator], theirs: list[Operator]) -> list[Operator]:
    """Each of `ours` with the sizes of the one of `theirs` that it is."""

    def keys(operators: list[Operator]) -> list[tuple[str, ...]]:
        # The same product may be another kernel, as one that adds a bias is.
        return [_product(op) if op.kind != "memory" else (op.name, *_product(op)) for op in operators]

    partner = {
        block.a + offset: block.b + offset
        for block in SequenceMatcher(None, keys(ours), keys(theirs), autojunk=False).get_matching_blocks()
        for offset in range(block.size)
    }
    made = [_merged(op, theirs[partner[place]]) if place in partner else _shrunk(op) for place, op in enumerate(ours)]
    places = {its: own for own, its in partner.items()}
    last = 0
    for place, op in enumerate(theirs):
        last = places.get(place, last)
        if place not in places and made:
            made[last] = _with_beside(made[last], op)
    return made


def _merged(one: Operator, two: Operator) -> Operator:
    return replace(
        one,
        dims=tuple(over_degrees(own, its) for own, its in zip(one.dims, two.dims, strict=True)),
        read_bytes=over_degrees(one.read_bytes, two.read_bytes),
        written_bytes=over_degrees(one.written_bytes, two.written_bytes),
        saved_bytes=over_degrees(one.saved_bytes, two.saved_bytes),
    )


def _shrunk(op: Operator) -> Operator:
    each = ((1.0, 0, 0, -1),)
    return replace(
        op,
        read_bytes=multiply(op.read_bytes, each),
        written_bytes=multiply(op.written_bytes, each),
        saved_bytes=multiply(op.saved_bytes, each),
    )


def _with_beside(op: Operator, other: Operator) -> Operator:
    return replace(
        op,
        read_bytes=add(op.read_bytes, multiply(other.read_bytes, SEVERAL)),
        written_bytes=add(op.written_bytes, multiply(other.written_bytes, SEVERAL)),
    )
