"""Fits passes over memory to kernels of PyTorch that linkedin/Liger-Kernel timed beside its own."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np

from profiles.laws.kernels import Array
from profiles.laws.passes import PassConstants

Row = dict[str, str]
MEMORY = {"A100-SXM4-80GB": 2039e9, "H100 80GB HBM3": 3350e9, "H100 PCIe": 2000e9}
# Of a kernel's tensor of rows x width: how often it passes (operands once each), its kernels, and the constant that
# says how much more. layer_norm: read and written; backward: gradient and input read, gradient written. relu_squared:
# two kernels that read and write each; backward three that read two and write one.
KERNELS = {
    ("layer_norm", "forward"): (2.0, 1, "norm_forward"),
    ("layer_norm", "backward"): (3.0, 2, "norm_backward"),
    ("relu_squared", "forward"): (4.0, 2, ""),
    ("relu_squared", "backward"): (9.0, 4, ""),
}
BOUNDS = {
    "traffic_fraction": (0.4, 0.85, 1.0), "overhead_us": (1.0, 3.0, 10.0), "norm_forward": (1.0, 1.5, 3.0),
    "norm_backward": (1.0, 1.7, 3.0),
}  # fmt: skip
# Gradients of lookups add to what stands there, in no order; sorting passes several times over values and places.
ASSUMED = {"scatter": 2.0, "sort": 8.0}


def _is_used(row: Row) -> bool:
    is_plain = row["metric"] == "speed" and row["provider"] in ("huggingface", "torch")
    return is_plain and (row["kernel"], row["pass"]) in KERNELS


def seconds(rows: list[Row], constants: PassConstants) -> Array:
    """Predicted seconds of rows."""
    result = []
    for row in rows:
        passes, kernels, name = KERNELS[row["kernel"], row["pass"]]
        config = json.loads(row["config"])
        width = 4.0 if "32" in config["dtype"] else 2.0
        moved = passes * config["M"] * float(row["x_value"]) * width
        more = getattr(constants, name) if name else 1.0
        rate = MEMORY[row["gpu"]] * constants.traffic_fraction
        result.append(kernels * constants.overhead_us * 1e-6 + moved * more / rate)
    return np.array(result)


def fit_rows(rows: list[Row]) -> PassConstants:
    """Constants of least robust error in the logarithm."""
    from scipy.optimize import least_squares

    low, start, high = (np.array([bound[i] for bound in BOUNDS.values()]) for i in range(3))
    measured = np.array([float(row["value_median"]) for row in rows]) / 1e3

    def build(x: Array) -> PassConstants:
        values = dict(zip(BOUNDS, (round(float(one), 4) for one in x), strict=True))
        source = f"linkedin/Liger-Kernel, {len(rows)} points of PyTorch's kernels"
        return PassConstants(**values, **ASSUMED, source=source)

    def residuals(x: Array) -> Array:
        return np.concatenate([np.log(seconds(rows, build(x)) / measured), 0.1 * (x - start) / (high - low)])

    found = least_squares(
        residuals, start, bounds=(low, high), x_scale=high - low, loss="soft_l1", f_scale=0.1, diff_step=1e-3
    )
    return build(found.x)


def fit_passes(path: Path) -> PassConstants:
    """Fit, and print how far devices are that were left out."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if _is_used(row)]
    for device in dict.fromkeys(row["gpu"] for row in rows):
        inside = [row for row in rows if row["gpu"] == device]
        rest = [row for row in rows if row["gpu"] != device]
        if not rest:
            continue
        measured = np.array([float(row["value_median"]) for row in inside]) / 1e3
        size = np.abs(seconds(inside, fit_rows(rest)) / measured - 1)
        spread = f"median {np.median(size):.1%}, p90 {np.quantile(size, 0.9):.1%}"
        sys.stdout.write(f"passes, left out {device}: {spread} of {len(inside)}\n")
    return fit_rows(rows)
