"""Products and attention on a measured GPU: the published law, scaled to what was measured of its kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.cost.hardware import ELEMENT_BYTES, silicon_at
from planner.cost.measured.operators import Law, curves_of, find_curve
from profiles.laws.attention import attention_seconds
from profiles.laws.curves import scaled_seconds
from profiles.laws.kernels import Layout, matmul_seconds
from profiles.machines.devices import Device
from profiles.machines.profile import MachineProfile
from profiles.models.operators import Phase
from profiles.models.transformer import Array

# The law names layouts by which operands of a product are turned, traces as BLAS does.
LAYOUTS: dict[str, Layout] = {"nt": "TN", "nn": "NN", "tn": "NT"}
PHASE_OF: dict[str, Phase] = {"attention_forward": "forward", "attention_backward": "backward"}
# Seconds of a kernel at its dims, by the law.
Published = Callable[[list[Array]], Array]


def scaled_law(machine: MachineProfile, device: Device) -> Law:
    """The law of kernels on a machine with this device.

    Model: products and attention as published, times what the samples near by took over that, which knows of waves and
    tiles between and beyond the shapes that were timed; everything else on the machine's own curves.
    """
    curves = curves_of(machine)

    def seconds(kind: str, name: str, precision: str, flops: Array, moved: Array, dims: list[Array]) -> Array:
        published = published_law(device, kind, name, precision)
        curve = None if published is None else find_curve(machine, kind, name, precision)
        if published is None or curve is None or not curve.samples:
            return curves(kind, name, precision, flops, moved, dims)
        columns = list(np.array([sample.dims for sample in curve.samples], dtype=np.float64).T)
        return scaled_seconds(curve, published(columns), published(dims), dims)

    return seconds


def published_law(device: Device, kind: str, name: str, precision: str) -> Published | None:
    """The law of a kind of kernels; None where there is none."""
    if precision not in ELEMENT_BYTES:
        return None
    silicon = silicon_at(device, precision)
    if kind == "matmul" and name in LAYOUTS:
        layout = LAYOUTS[name]

        def of_products(dims: list[Array]) -> Array:
            batch, m, n, k = dims
            return matmul_seconds(m, n, k, layout, silicon, batch)

        return of_products
    if kind in PHASE_OF:
        phase = PHASE_OF[kind]

        def of_attention(dims: list[Array]) -> Array:
            batch, heads, queries, keys, size = dims
            return attention_seconds(phase, "flash2", batch, heads, queries, keys, size, size, silicon)

        return of_attention
    return None
