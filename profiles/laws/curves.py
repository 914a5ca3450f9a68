"""Curves of kernels and links: fitted to measured samples, evaluated for whole arrays of shapes. Torch-free.

A kernel takes latency + flops / rate + bytes / rate, corrected by what the nearest samples showed; a collective follows
its samples between the smallest and the largest. Fitting needs scipy, evaluation only NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.machines.profile import Collective, KernelCurve, LinkCurve, Sample
from profiles.models.operators import ATTENTION_FLOPS

Array = NDArray[np.float64]

BYTES_PER_ELEMENT = {"fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0}
# Products of matrices by layout, and of all layouts: what else is counted as products may do fewer operations.
PRODUCTS = ("nt", "nn", "tn", "")
# How a linear's weights may be kept after training; each has a curve of its own.
LINEAR_SCHEMES = ("int8-weights", "int8-dynamic", "fp8-weights")
# AdamW reads parameter, gradient and two moments and writes all but the gradient, all in fp32.
ADAMW_BYTES_PER_PARAMETER = 4.0 * (4 + 3)
# A sample's correction has lost half its say where the dims are further away than this factor.
CORRECTION_REACH = float(np.log(4.0))
SAME_POINT = 1e-9
QUERIES_AT_A_TIME = 4096


def work_of(kind: str, dims: Sequence[ArrayLike], precision: str) -> tuple[Array, Array]:
    """FLOPs and bytes moved by a kernel of `kind` at `dims`, each operand counted once.

    Shapes: the dims (in the order that KernelCurve states) broadcast; both results have the broadcast shape.
    """
    sizes = np.broadcast_arrays(*(np.asarray(dim, dtype=np.float64) for dim in dims))
    element = BYTES_PER_ELEMENT[precision]
    if kind == "matmul":
        batch, m, n, k = sizes
        return 2 * batch * m * n * k, element * batch * (m * k + k * n + m * n)
    if kind in ("attention_forward", "attention_backward"):
        batch, heads, queries, keys, head_size = sizes
        rows = batch * heads * head_size
        if kind == "attention_forward":
            return ATTENTION_FLOPS["forward"] * rows * queries * keys, element * rows * (2 * queries + 2 * keys)
        return ATTENTION_FLOPS["backward"] * rows * queries * keys, element * rows * (4 * queries + 4 * keys)
    if kind == "linear":
        tokens, inputs, outputs = sizes
        activations = BYTES_PER_ELEMENT["fp32"] * tokens * (inputs + outputs)
        return 2 * tokens * inputs * outputs, element * inputs * outputs + activations
    amount = sizes[0]
    return np.zeros_like(amount), amount * (ADAMW_BYTES_PER_PARAMETER if kind == "optimizer" else 1.0)


def fit_kernel(kind: str, name: str, precision: str, samples: Sequence[Sample]) -> KernelCurve:
    """The curve of least squared relative error with no negative term; its error is the median relative residual.

    Model: seconds = latency + flops / flops_per_second + bytes / bytes_per_second.
    """
    flops, num_bytes = work_of(kind, _columns(samples), precision)
    seconds = np.array([sample.seconds for sample in samples])
    latency, flop_seconds, byte_seconds = _fit_terms(np.stack([np.ones_like(seconds), flops, num_bytes], 1), seconds)
    fitted = latency + flops * flop_seconds + num_bytes * byte_seconds
    return KernelCurve(
        kind=kind,
        name=name,
        precision=precision,
        latency_seconds=latency,
        flops_per_second=1 / flop_seconds if flop_seconds > 0 else 0.0,
        bytes_per_second=1 / byte_seconds if byte_seconds > 0 else 0.0,
        error_fraction=float(np.median(np.abs(fitted / seconds - 1))),
        origin="measured",
        samples=tuple(samples),
    )


def kernel_seconds(curve: KernelCurve, flops: ArrayLike, num_bytes: ArrayLike, dims: Sequence[ArrayLike] = ()) -> Array:
    """Seconds of one call per shape; where a shape was measured, exactly what was measured.

    Model: the fitted terms, times a correction interpolated from the samples near `dims` (in logarithms). Of several
    dims it fades to 1 far from all samples; of one it holds beyond the ends. Without `dims`, or where the curve has no
    samples, the fitted terms alone.
    Shapes: flops, bytes and every dim broadcast; the result has the broadcast shape.
    """
    flops, num_bytes = np.asarray(flops, dtype=np.float64), np.asarray(num_bytes, dtype=np.float64)
    columns = [np.asarray(dim, dtype=np.float64) for dim in dims]
    shape = np.broadcast_shapes(flops.shape, num_bytes.shape, *(column.shape for column in columns))
    base = _terms(curve, flops, num_bytes)
    if not columns or not curve.samples:
        return np.broadcast_to(base, shape).copy()
    points = np.stack([np.broadcast_to(column, shape).ravel() for column in columns], axis=1)
    return np.asarray(base * np.exp(_log_correction(curve, points)).reshape(shape))


def scaled_seconds(curve: KernelCurve, expected: Array, seconds: Array, dims: Sequence[Array]) -> Array:
    """`seconds` that a law says of calls at `dims`, times what the curve's samples took over the `expected` of them.

    Model: as kernel_seconds corrects its fitted terms, but that far from all samples their mean ratio holds.
    Shapes: `expected` one per sample; `seconds` and every dim broadcast.
    """
    shape = np.broadcast_shapes(seconds.shape, *(np.shape(dim) for dim in dims))
    ratios = np.log(np.array([sample.seconds for sample in curve.samples]) / np.maximum(expected, 1e-12))
    mean = float(ratios.mean())
    where = np.log(np.maximum([sample.dims for sample in curve.samples], 1.0))
    points = np.log(np.maximum(np.stack([np.broadcast_to(dim, shape).ravel() for dim in dims], axis=1), 1.0))
    return np.asarray(seconds * np.exp(mean + _by_distance(where, ratios - mean, points)).reshape(shape))


def fit_link(
    collective: Collective, group_size: int, span: Literal["node", "network"], samples: Sequence[Sample]
) -> LinkCurve:
    """The latency and bandwidth of least squared relative error, neither negative.

    Model: seconds = latency + bytes / bytes_per_second.
    """
    num_bytes = np.array([sample.dims[0] for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    latency, byte_seconds = _fit_terms(np.stack([np.ones_like(seconds), num_bytes], axis=1), seconds)
    if byte_seconds == 0:
        # Samples all of small messages show no bandwidth: the best rate seen is a safe lower bound.
        byte_seconds = float(np.min(seconds / num_bytes))
    fitted = latency + num_bytes * byte_seconds
    return LinkCurve(
        collective=collective,
        group_size=group_size,
        span=span,
        latency_seconds=latency,
        bytes_per_second=1 / byte_seconds,
        error_fraction=float(np.median(np.abs(fitted / seconds - 1))),
        origin="measured",
        samples=tuple(sorted(samples, key=lambda sample: sample.dims)),
    )


def link_seconds(curve: LinkCurve, num_bytes: ArrayLike) -> Array:
    """Seconds of one collective of `num_bytes` (the bytes LinkCurve states); never falls as bytes grow.

    Model: straight lines between the samples in logarithms; beyond them latency + bytes / bytes_per_second, scaled to
    meet the first or the last sample. Shapes: any; the result has the same.
    """
    num_bytes = np.asarray(num_bytes, dtype=np.float64)
    base = curve.latency_seconds + _per(num_bytes, curve.bytes_per_second)
    if not curve.samples:
        return np.asarray(base)
    ordered = sorted(curve.samples, key=lambda sample: sample.dims)
    knots = np.array([sample.dims[0] for sample in ordered])
    # A noisy sample may lie below a smaller one's: more bytes must not look cheaper.
    seconds = np.maximum.accumulate([sample.seconds for sample in ordered])
    at_knots = curve.latency_seconds + _per(knots, curve.bytes_per_second)
    inside = np.exp(np.interp(np.log(np.maximum(num_bytes, knots[0])), np.log(knots), np.log(seconds)))
    below = base * (seconds[0] / at_knots[0])
    above = base * (seconds[-1] / at_knots[-1])
    return np.asarray(np.where(num_bytes < knots[0], below, np.where(num_bytes > knots[-1], above, inside)))


def best_product_rate(kernels: Sequence[KernelCurve], precision: str) -> float:
    """FLOPs per second of the fastest product measured."""
    return max(
        float(work_of("matmul", sample.dims, precision)[0]) / sample.seconds
        for curve in kernels
        if (curve.kind, curve.precision) == ("matmul", precision) and curve.name in PRODUCTS
        for sample in curve.samples
    )


def copy_rate(kernels: Sequence[KernelCurve]) -> float:
    """Bytes per second of the largest plain copy, which no cache holds."""
    copies = [sample for curve in kernels if (curve.kind, curve.name) == ("memory", "") for sample in curve.samples]
    largest = max(copies, key=lambda sample: sample.dims)
    return largest.dims[0] / largest.seconds


def _per(amount: Array, rate: float) -> Array:
    # A rate of 0 means that the term does not apply.
    return amount / rate if rate > 0 else np.zeros_like(amount)


def _terms(curve: KernelCurve, flops: Array, num_bytes: Array) -> Array:
    return np.asarray(
        curve.latency_seconds + _per(flops, curve.flops_per_second) + _per(num_bytes, curve.bytes_per_second)
    )


def _columns(samples: Sequence[Sample]) -> list[Array]:
    return list(np.array([sample.dims for sample in samples], dtype=np.float64).T)


def _fit_terms(columns: Array, seconds: Array) -> list[float]:
    """Non-negative coefficients of `columns`, each row weighted by 1 / seconds."""
    from scipy.optimize import nnls

    weighted = columns / seconds[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    scale[scale == 0] = 1.0
    coefficients, _ = nnls(weighted / scale, np.ones_like(seconds))
    return [float(value) for value in coefficients / scale]


def _log_correction(curve: KernelCurve, points: Array) -> Array:
    """Logarithm of measured over fitted seconds at `points` (queries, dims)."""
    where = np.log(np.maximum([sample.dims for sample in curve.samples], 1.0))
    fitted = _terms(curve, *work_of(curve.kind, _columns(curve.samples), curve.precision))
    residuals = np.log(np.array([sample.seconds for sample in curve.samples]) / np.maximum(fitted, 1e-12))
    points = np.log(np.maximum(points, 1.0))
    if where.shape[1] == 1:
        return _correct_along_a_line(where[:, 0], residuals, points[:, 0])
    return _by_distance(where, residuals, points)


def _by_distance(where: Array, residuals: Array, points: Array) -> Array:
    chunks = (points[start : start + QUERIES_AT_A_TIME] for start in range(0, len(points), QUERIES_AT_A_TIME))
    return np.concatenate([_correct_by_distance(where, residuals, chunk) for chunk in chunks])


def _correct_along_a_line(where: Array, residuals: Array, points: Array) -> Array:
    # Beyond the ends the last correction holds: the largest sample shows the rate of memory, smaller ones a cache's.
    order = np.argsort(where)
    return np.asarray(np.interp(points, where[order], residuals[order]))


def _correct_by_distance(where: Array, residuals: Array, points: Array) -> Array:
    """Mean of the residuals weighted by inverse distance to the fourth power, with a residual of 0 at the reach."""
    squared = np.zeros((len(points), len(where)))
    for dim in range(where.shape[1]):
        squared += (points[:, dim, None] - where[None, :, dim]) ** 2
    squared = np.maximum(squared, SAME_POINT**2)
    weights = (CORRECTION_REACH**2 / squared) ** 2
    return np.asarray(weights @ residuals / (weights.sum(axis=1) + 1.0))
