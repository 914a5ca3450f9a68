"""Seconds of a listed step on a device by kind of kernel, before what runs taught of each kind."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.cost.hardware import silicon_at
from profiles.laws.attention import attention_seconds
from profiles.laws.convolutions import PASSES, convolution_seconds, shape_of
from profiles.laws.kernels import Array, Silicon, is_aligned, matmul_seconds
from profiles.laws.operator_constants import OperatorConstants, UnitConstants
from profiles.laws.passes import pass_seconds, repeats
from profiles.laws.recurrent import recurrent_seconds
from profiles.machines.devices import Device
from profiles.models.operator_list import ListedOperator, OperatorList, at, columns
from profiles.units import GB

HALF = ("fp16", "bf16")
CONVOLUTIONS = dict(
    zip(("convolution", "convolution_data_gradient", "convolution_weight_gradient"), PASSES, strict=True)
)
# Of plain units beside TF32's, the share of their peak that products reach (assumed).
PLAIN_SHARE = 0.9
# Whose libraries compute products of rows that cannot be loaded in vectors outside of the matrix units (cuBLAS 10).
UNALIGNED_WITHOUT = ("volta", "turing")
KINDS = ("matmul", "convolution", "depthwise", "attention", "recurrent", "norm", "pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Seconds by kind of kernel and kernels launched, forward and backward together."""

    seconds: dict[str, float]
    launches: float


def components_of(
    listed: OperatorList, samples: float, device: Device, precision: str, constants: OperatorConstants
) -> Components:
    """What a list's kernels take with `samples` in a batch; products in `precision` where the list is of amp."""
    seconds = dict.fromkeys(KINDS, 0.0)
    groups: dict[tuple[str, bool], list[ListedOperator]] = {}
    for one in listed.operators:
        groups.setdefault((one.kind, one.dtype in HALF), []).append(one)
    for (kind, is_half), chosen in groups.items():
        own = _units(precision, is_half)
        silicon, on_matrix_units = silicon_for(device, own)
        for name, value in _seconds(kind, chosen, samples, silicon, on_matrix_units, device, constants).items():
            seconds[name] += value
    return Components(seconds=seconds, launches=float(sum(one.count for one in listed.operators)))


def _units(precision: str, is_half: bool) -> str:
    """What operators of 16 bits, and the others, of a training in a precision are computed in."""
    if is_half:
        return precision if precision in HALF else "bf16"
    return "fp32_plain" if precision in HALF else precision


def silicon_for(device: Device, precision: str) -> tuple[Silicon, bool]:
    """A device's units for a precision, and whether those are matrix units."""
    has_matrix_units = device.generation not in ("maxwell", "pascal")
    if precision in ("fp32_plain", "fp32"):
        is_tf32 = precision == "fp32" and "tf32" in device.peak_tflops
        if not is_tf32:
            whole = silicon_at(device, "fp32")
            share = PLAIN_SHARE if "tf32" in device.peak_tflops else float(whole.achievable_fraction[0])
            return plain(whole, device.vector_tflops * 1e12, share), False
        precision = "tf32"
    name = precision if precision in device.peak_tflops else "fp16" if precision == "bf16" else "fp32"
    return silicon_at(device, name), has_matrix_units and name != "fp32"


def plain(silicon: Silicon, flops_per_second: float, share: float) -> Silicon:
    """The device's units outside of its matrix units."""
    return replace(
        silicon, matmul_flops_per_second=np.array([flops_per_second]), achievable_fraction=np.array([share]),
        watts_per_tflops=np.zeros(1),
    )  # fmt: skip


def _seconds(
    kind: str, chosen: list[ListedOperator], samples: float, silicon: Silicon, on_matrix_units: bool, device: Device,
    constants: OperatorConstants,
) -> dict[str, float]:  # fmt: skip
    """Seconds of operators of one kind and precision, by name of the component."""
    counts = np.array([one.count for one in chosen], dtype=np.float64)
    own = constants.of(device.generation, on_matrix_units)
    moved = np.array([max(at(one.read_bytes, samples) + at(one.written_bytes, samples), 0.0) for one in chosen])
    if kind == "pass":
        names = [one.name for one in chosen]
        repeated = repeats(names, own.passes)
        each = pass_seconds(moved, device.memory_gb_per_second * GB, own.passes, repeated) * counts
        is_norm = np.array(["_norm" in name for name in names])
        return {"norm": float(each[is_norm].sum()), "pass": float(each[~is_norm].sum())}
    dims = columns(tuple(chosen), samples)
    if kind == "matmul":
        batch, m, n, k = dims.T
        aligned = is_aligned(n, silicon) & is_aligned(k, silicon) if on_matrix_units else np.ones(len(n), dtype=bool)
        relative = np.ones(len(n))
        if device.generation in UNALIGNED_WITHOUT:
            # They sum in fp32, at its rate.
            plain_share = np.minimum(silicon.vector_fraction / silicon.achievable_fraction, 1.0)
            relative, aligned = np.where(aligned, 1.0, plain_share), np.ones(len(n), dtype=bool)
        # Which layouts they have matters little beside what is not known here.
        each = matmul_seconds(m, n, k, "TN", silicon, batch, aligned=aligned, relative=relative)
        return {"matmul": float((each * counts).sum())}
    if kind == "attention":
        batch, heads, queries, keys, size = dims.T
        phases = np.array([one.phase == "forward" for one in chosen])
        sizes = (batch, heads, queries, keys, size, size)
        ahead = attention_seconds("forward", "flash", *sizes, silicon, causal=False)
        back = attention_seconds("backward", "flash", *sizes, silicon, causal=False)
        return {"attention": float((np.where(phases, ahead, back) * counts).sum())}
    if kind == "recurrent":
        b, t, i, h, g = dims.T
        forward = recurrent_seconds("forward", b, t, i, h, g, silicon, own.recurrent)
        back = recurrent_seconds("data_gradient", b, t, i, h, g, silicon, own.recurrent)
        back = back + recurrent_seconds("weight_gradient", b, t, i, h, g, silicon, own.recurrent)
        is_forward = np.array([one.phase == "forward" for one in chosen])
        return {"recurrent": float((np.where(is_forward, forward, back) * counts).sum())}
    return _convolutions(chosen, dims, counts, silicon, on_matrix_units, own)


def _convolutions(
    chosen: list[ListedOperator],
    dims: Array,
    counts: Array,
    silicon: Silicon,
    on_matrix_units: bool,
    own: UnitConstants,
) -> dict[str, float]:
    total = {"convolution": 0.0, "depthwise": 0.0}
    names = np.array([CONVOLUTIONS[one.name] for one in chosen])
    for which in PASSES:
        where = names == which
        if not where.any():
            continue
        shape = shape_of(dims[where])
        each = convolution_seconds(which, shape, silicon, own.convolutions, on_matrix_units) * counts[where]
        single = shape.groups > 1
        total["depthwise"] += float(each[single].sum())
        total["convolution"] += float(each[~single].sum())
    return total


def peak_bytes(listed: OperatorList, samples: float) -> float:
    """Bytes that stand at the worst moment besides the parameters."""
    return max(at(listed.peak_bytes, samples), at(listed.saved_bytes, samples))
