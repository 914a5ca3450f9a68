"""Polynomials through the numbers that traces of several sizes gave. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
