"""How far gradients and weights may be from a plain loop's: what order of sums, precision and codec account for.

Ranks add up in another order than one device: fp32 differs in its last bits. In 16 and 8 bits every product is rounded:
the plain loop itself, in the plan's precision and in fp32, shows by how much, and the plan may be off by a few times
that. A codec's messages are off by what its own rounding allows, element by element.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from executor.run.plain_loop import Parts
from planner.plans import Plan
from profiles.codecs.codec import codec

PIECE = 2**22
# Relative to a tensor's norm.
TOLERANCE_FRACTIONS = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 1e-3, "fp16": 1e-3, "fp8": 1e-3}
# 1 less the cosine of all gradients with the plain loop's.
COSINE_FRACTIONS = {"fp32": 1e-6, "tf32": 1e-3, "bf16": 1e-3, "fp16": 1e-3, "fp8": 1e-3}
# Times the rounding of the plain loop's own gradients.
ROUNDINGS = 3.0
# A tensor whose gradients are smaller than this share of the usual ones is held against that share.
SMALL_SHARE = 0.1
# Steps of which a low rank sends gradients as they are.
EXACT_STEPS_OF_LOW_RANK = 2
# Half a step, relative, of numbers of 8 and 11 significant bits; fp16 has nothing below 2^-24.
UNIT_ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11}
SMALLEST = {"bf16": 0.0, "fp16": 2.0**-24}
# e4m3 has 4 significant bits, and steps of 2^-9 below 2^-6, of 448 at most; int8 has 127 steps to a block's largest.
FP8_ROUNDING, FP8_STEP, INT8_STEP = 2.0**-4, 2.0**-9 / 448, 1 / 127
# Where a rank's share of a gradient is not known, as of its tokens, it is taken for so many times the mean.
UNKNOWN_PARTS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What gradients are compared by: the root mean square of all, and how much of each tensor is rounding.

    `loss_rounding` is that of the loss, relative, and `cosine_rounding` what it takes from the cosine of all gradients;
    `weight_rounding` is how far last bits take each weight within the steps of plain descent.
    """

    usual: float
    rounding: dict[str, float]
    loss_rounding: float = 0.0
    cosine_rounding: float = 0.0
    weight_rounding: dict[str, float] = field(default_factory=dict)

    def of(self, name: str, gradient: Tensor) -> float:
        """The size that a relative difference of this tensor is of."""
        return max(float(gradient.norm()), SMALL_SHARE * self.usual * math.sqrt(gradient.numel()))

    def at_least_usual(self, gradients: Mapping[str, Tensor]) -> Scale:
        """The same with no tensor's rounding, as a share, below the median: each is one draw, small ones by chance."""
        sizes = {name: self.of(name, gradients[name]) for name in self.rounding}
        shares = [self.rounding[name] / size for name, size in sizes.items() if size]
        usual = statistics.median(shares) if shares else 0.0
        return replace(self, rounding={name: max(self.rounding[name], usual * size) for name, size in sizes.items()})


def sends(plan: Plan) -> str:
    """Of what parts a lossy codec makes messages: "replicas" or "micro-batches"; "" where gradients are exact."""
    if not codec(plan.codec).lossy or codec(plan.codec).rank:
        return ""
    return "micro-batches" if plan.zero_stage >= 2 else "replicas"


def first_lossy_step(plan: Plan) -> int:
    """The first step whose gradients a lossy codec changes."""
    return EXACT_STEPS_OF_LOW_RANK if codec(plan.codec).rank else 0


def allowed_fraction(plan: Plan, name: str, gradient: Tensor, scale: Scale) -> float:
    """By how much of its size a tensor's gradient may differ as a whole."""
    return max(
        TOLERANCE_FRACTIONS[plan.precision], ROUNDINGS * scale.rounding.get(name, 0.0) / scale.of(name, gradient)
    )


def allowed_loss(plan: Plan, scale: Scale) -> float:
    """By how much the loss may differ."""
    return max(TOLERANCE_FRACTIONS[plan.precision], ROUNDINGS * scale.loss_rounding)


def allowed_cosine(plan: Plan, scale: Scale) -> float:
    """By how much the cosine of all gradients may be below 1, which goes with the square of what they differ by."""
    return max(COSINE_FRACTIONS[plan.precision], ROUNDINGS**2 * scale.cosine_rounding)


def beyond(plan: Plan, found: Tensor, wanted: Tensor, parts: Parts | None, largest: float) -> Tensor:
    """What of the difference a codec does not account for, element by element."""
    used = codec(plan.codec)
    if parts is None or not used.lossy:
        return (found - wanted).abs()
    if used.is_sparse:
        if plan.context_parallel > 1:
            return (found.abs() - UNKNOWN_PARTS * wanted.abs().max()).clamp(min=0.0)
        # The sum of what some ranks have sent and others have not.
        return torch.maximum(parts.below - found, found - parts.above).clamp(min=0.0)
    return ((found - wanted).abs() - rounded(plan, parts.sizes, largest)).clamp(min=0.0)


def rounded(plan: Plan, sizes: Tensor, most: float) -> Tensor:
    """How far the mean of rounded parts may be from the mean of the parts, whose sizes and largest these are."""
    ranks, used = plan.data_parallel * plan.context_parallel, codec(plan.codec)
    if plan.context_parallel > 1:
        sizes, most = UNKNOWN_PARTS * sizes, UNKNOWN_PARTS * most
        if used.name != "int8":
            sizes = sizes + UNKNOWN_PARTS * float(sizes.square().mean().sqrt())
    if used.name in UNIT_ROUNDING:
        # Each part is rounded, and every sum on the way.
        return (ranks + 1) * UNIT_ROUNDING[used.name] * sizes + ranks * SMALLEST[used.name]
    if used.name == "fp8":
        return FP8_ROUNDING * 1.001 * sizes + FP8_STEP * most
    return torch.full_like(sizes, INT8_STEP * 0.501 * most)


def projection_error(found: Tensor, wanted: Tensor) -> float:
    """How far a low-rank gradient is from being a projection of the exact one, relative.

    What PowerSGD gives of a matrix is its projection on a few columns, whichever they are: its product with the matrix
    is its own square. Source: Vogels et al. 2019, algorithm 1.
    """
    square = dot(found, found)
    size = math.sqrt(square * dot(wanted, wanted))
    return abs(dot(found, wanted) - square) / size if size else square


def dot(one: Tensor, other: Tensor) -> float:
    """The product of all elements, added up in 64 bits; some of them at a time, for tensors may be large."""
    pieces = zip(one.flatten().split(PIECE), other.flatten().split(PIECE), strict=True)
    return sum(float((first.double() * second.double()).sum()) for first, second in pieces)
