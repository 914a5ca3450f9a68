"""Polynomials through the numbers that traces of several sizes gave. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from profiles.models.operators import Polynomial, Term, add

Size = tuple[int, int, int]  # micro-batch, sequence length, tensor-parallel degree


def fit(sizes: tuple[Size, ...], values: Sequence[int]) -> Polynomial:
    """The polynomial through `values`: one term where the ratios are powers, else a constant and one term each.

    Shapes: `sizes` differ from the first in one place each, in the order of `Size`.
    """
    first = values[0]
    if first == 0:
        return ()
    exponents = [0, 0, 0]
    powers = True
    for axis, (size, value) in enumerate(zip(sizes[1:], values[1:], strict=True)):
        exponent = math.log(value / first) / math.log(size[axis] / sizes[0][axis]) if value > 0 else math.nan
        powers = powers and not math.isnan(exponent) and abs(exponent - round(exponent)) < 1e-9
        exponents[axis] = round(exponent) if powers else 0
    if powers:
        scale = math.prod(float(x) ** e for x, e in zip(sizes[0], exponents, strict=True))
        return ((first / scale, exponents[0], exponents[1], exponents[2]),)
    return _affine(sizes, values)


def _affine(sizes: tuple[Size, ...], values: Sequence[int]) -> Polynomial:
    """A constant plus a term linear in micro-batch, in sequence length and in 1 / degree; or one in their product.

    Where half as many samples more and half as many tokens more come to the same, tokens count: each adds to what a
    weight or a scale beside them takes.
    """
    terms: list[Term] = []
    rest = float(values[0])
    slopes = [_slope(axis, sizes, values) for axis in range(len(sizes) - 1)]
    batch, sequence, _ = sizes[0]
    if slopes[0] and slopes[0] * batch == slopes[1] * sequence:
        tokens = slopes[0] * batch
        rest -= tokens
        slopes[:2] = 0.0, 0.0
        # They alone are split over the tensor axis, or all of it is.
        is_split = any(math.isclose(slope, whole) for slope in slopes[2:] for whole in (tokens, values[0]))
        terms.append((tokens / batch / sequence, 1, 1, -int(is_split)))
        slopes[2:] = [slope - tokens * is_split for slope in slopes[2:]]
    for axis, slope in enumerate(slopes):
        if slope:
            rest -= slope * (1.0 if axis == 2 else sizes[0][axis])
            terms.append((slope, int(axis == 0), int(axis == 1), -int(axis == 2)))
    return add(tuple(terms), ((rest, 0, 0, 0),))


def _slope(axis: int, sizes: tuple[Size, ...], values: Sequence[int]) -> float:
    """How much the values grow with micro-batch, sequence length or 1 / degree, all else alike."""
    exponent = -1 if axis == 2 else 1
    before, after = (float(size[axis]) ** exponent for size in (sizes[0], sizes[axis + 1]))
    return (values[axis + 1] - values[0]) / (after - before)


Exponents = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """Polynomials through values at a grid of micro-batches and sample sizes, with one term for each point.

    Shapes: `points` are (micro-batch, sample size), `exponents` the powers of both in the terms, as many.
    """

    points: tuple[tuple[int, int], ...]
    exponents: Exponents
    inverse: tuple[tuple[Fraction, ...], ...]
    # Most kernels have sizes that others have too.
    known: dict[tuple[int, ...], Polynomial] = field(default_factory=dict, compare=False, repr=False)

    def fit(self, values: Sequence[int]) -> Polynomial:
        """The polynomial that has these values at the points."""
        if not any(values):
            return ()
        key = tuple(values)
        if key not in self.known:
            self.known[key] = self._through(key)
        return self.known[key]

    def _through(self, values: Sequence[int]) -> Polynomial:
        terms: list[Term] = []
        for (batch, size), row in zip(self.exponents, self.inverse, strict=True):
            coefficient = sum((a * value for a, value in zip(row, values, strict=True)), Fraction(0))
            if coefficient:
                terms.append((float(coefficient), batch, size, 0))
        return add(tuple(terms))


def grid(batches: Sequence[int], sizes: Sequence[int], powers: Sequence[int]) -> Grid:
    """The grid of all pairs: powers of the micro-batch from 0 on, of the size those given, as many as there are."""
    points = tuple((batch, size) for batch in batches for size in sizes)
    exponents = tuple((power, other) for power in range(len(batches)) for other in powers)
    rows = [[Fraction(b) ** i * Fraction(s) ** j for i, j in exponents] for b, s in points]
    return Grid(points, exponents, _inverse(rows))


def _inverse(rows: list[list[Fraction]]) -> tuple[tuple[Fraction, ...], ...]:
    """The inverse of a matrix, exactly, by elimination."""
    count = len(rows)
    wide = [row + [Fraction(int(i == j)) for j in range(count)] for i, row in enumerate(rows)]
    for column in range(count):
        pivot = next(row for row in range(column, count) if wide[row][column])
        wide[column], wide[pivot] = wide[pivot], wide[column]
        scale = wide[column][column]
        wide[column] = [value / scale for value in wide[column]]
        for row in range(count):
            if row != column and wide[row][column]:
                factor = wide[row][column]
                wide[row] = [a - factor * b for a, b in zip(wide[row], wide[column], strict=True)]
    return tuple(tuple(row[count:]) for row in wide)
