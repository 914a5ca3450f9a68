"""Training in 8 bits and less: which parts do, at what rate by what shares a scale, and what converting costs."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.groups import FULL_PRECISIONS
from planner.cost.hardware import LOW_PRECISIONS
from planner.cost.job import Jobs, Names
from profiles.models.transformer import Array, Flags

# Bytes moved to convert one 16-bit element, as it is and transposed, by one kernel or a compiler's: read once, written
# twice; a scale of its own tensor wants the largest element first, scales of rows and of columns are two such passes.
# Delayed scales are known beforehand, so that the operator before converts: half of the reads.
CONVERTED_BYTES = {
    "delayed": 3.0, "tensorwise": 6.0, "current": 6.0, "rowwise": 8.0, "blockwise": 4.0, "mxfp8-block32": 4.2,
}  # fmt: skip
# Spelled out in PyTorch's operators: magnitude (4), largest (2), scaled in fp32 (6), clamped (8), rounded (5), and
# transposed (2).
EAGER_CONVERTED_BYTES = 27.0
# Rate of products against those with one scale a tensor. Blocks of 128: 1358 TFLOP/s on H800 (DeepGEMM) against 1403
# on H100 (ml-engineering); rows: assumed the same; blocks of 32 are scaled by the units themselves.
RELATIVE_RATE = {"rowwise": 0.97, "blockwise": 0.97}
# Groups' rows are padded to whole blocks before a product, and the padding dropped behind it: a read and a write each.
PADDED_PASSES = 4.0


def recipes_of(jobs: Jobs) -> Names:
    """What shares a scale in each job: as told, else by the precision or as its stack usually does."""
    usual = jobs.stack.words(lambda stack: stack.time.fp8_recipe)
    by_precision = np.where(np.isin(jobs.precision, ("mxfp8", "nvfp4")), "mxfp8-block32", usual)
    return np.where(jobs.fp8_recipe == "", by_precision, jobs.fp8_recipe)


def is_low(jobs: Jobs) -> Flags:
    """Whether linears compute in 8 bits or less."""
    return np.isin(jobs.precision, LOW_PRECISIONS)


def is_narrow(jobs: Jobs) -> Flags:
    """Whether nothing of the weights is in 32 bits: they, their gradients and states are in 16."""
    return np.asarray((jobs.master_weights == "no") & ~np.isin(jobs.precision, FULL_PRECISIONS))


def converted_bytes(jobs: Jobs) -> Array:
    """Bytes moved to convert one element for a product, 0 in 16 bits and more."""
    recipes = recipes_of(jobs)
    fused = np.select([recipes == name for name in CONVERTED_BYTES], list(CONVERTED_BYTES.values()), 6.0)
    by_kernel = jobs.compiled | (jobs.stack.read(lambda stack: float("conversion" in stack.time.fuses)) > 0)
    return np.where(is_low(jobs), np.where(by_kernel, fused, EAGER_CONVERTED_BYTES), 0.0)


def weight_conversions(jobs: Jobs) -> Array:
    """How often a micro-batch converts the weights: once, or where the software keeps them, its share of a step."""
    keeps = jobs.stack.read(lambda stack: float(stack.time.keeps_low_weights)) > 0
    return np.where(keeps, 1.0 / np.maximum(jobs.num_microbatches, 1.0), 1.0)


def relative_rate(jobs: Jobs) -> Array:
    """Rate of low-precision products against those with one scale a tensor."""
    recipes = recipes_of(jobs)
    rate = np.select([recipes == name for name in RELATIVE_RATE], list(RELATIVE_RATE.values()), 1.0)
    return np.where(is_low(jobs), rate, 1.0)


def lowers_experts(jobs: Jobs) -> Flags:
    """Whether routed experts compute in the low precision of the linears: as told, else as the stack does."""
    usual = jobs.stack.read(lambda stack: float(stack.time.lowers_experts)) > 0
    told = np.char.find(jobs.low_precision_parts, "grouped") >= 0
    return is_low(jobs) & np.where(jobs.low_precision_parts == "", usual, told)
