"""Fits the constants of profiles/kernel_speed to the published tables: `python -m profiles.fit_kernels`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from profiles import artifacts
from profiles.kernel_speed import (
    PATH,
    Array,
    KernelConstants,
    Silicon,
    attention_seconds,
    grouped_matmul_seconds,
    matmul_seconds,
)

Row = dict[str, str]
MEASURED = Path(__file__).parent / "catalog" / "measured"
# Device of a table: generation, peak and best measured TFLOP/s, memory bandwidth, multiprocessors.
DEVICES = {
    "A100-PCIe-80GB": ("ampere", 312.0, 252.9, 1935.0, 108),
    "B200-SXM-180GB": ("blackwell", 2250.0, 1745.0, 8000.0, 148),
    "V100-SXM2-16GB p3": ("volta", 125.0, 106.0, 900.0, 80),
    "H800-SXM": ("hopper", 1979.0, 1402.6, 3350.0, 132),
}
FITTED = ("ampere", "blackwell")
# Lowest, expected, highest.
BOUNDS: dict[str, tuple[float, float, float]] = {
    "tn_fraction": (0.5, 0.97, 1.1),
    "nn_fraction": (0.5, 0.95, 1.1),
    "nt_fraction": (0.5, 0.95, 1.1),
    "depth": (0.0, 128.0, 2048.0),
    "wave_share": (0.0, 0.6, 2.0),
    "traffic_fraction": (0.3, 0.8, 4.0),
    "overhead_us": (1.0, 4.0, 20.0),
    "grouped_fraction": (0.5, 0.9, 1.2),
    "grouped_overhead_us": (0.0, 1.0, 20.0),
    "attention_forward_fraction": (0.4, 0.75, 1.1),
    "attention_backward_fraction": (0.3, 0.6, 1.0),
    "tail_share": (0.0, 0.7, 2.0),
}
PRIOR_WEIGHT = 0.1


def read_table(name: str) -> dict[str, list[dict[str, str]]]:
    """Rows of a shipped table by device."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (MEASURED / f"{name}.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            rows.setdefault(row["gpu"], []).append(row)
    return rows


def silicon_for(gpu: str) -> Silicon:
    """The device of a table."""
    generation, peak, best, memory, count = DEVICES[gpu]
    low = gpu == "H800-SXM"
    return Silicon(
        matmul_flops_per_second=np.array([peak * 1e12]),
        achievable_fraction=np.array([best / peak]),
        memory_bytes_per_second=np.array([memory * 1e9]),
        num_multiprocessors=np.array([float(count)]),
        element_bytes=np.array([1.0 if low else 2.0]),
        generation=np.array([generation]),
    )


def errors(gpu: str, constants: KernelConstants, matmul: list[Row], attention: list[Row]) -> Array:
    """Logarithm of predicted over measured seconds of every row, products first."""
    silicon = silicon_for(gpu)
    table = {silicon.generation[0]: constants}
    found: list[Array] = []
    for op in ("matmul", "group_matmul"):
        for layout in ("TN", "NN", "NT"):
            rows = [row for row in matmul if row["op"] == op and row["layout"] == layout]
            if not rows:
                continue
            batch, m, n, k = (np.array([float(row[name]) for row in rows]) for name in ("batch", "m", "n", "k"))
            rate = np.array([float(row["tflops"]) for row in rows]) * 1e12
            if op == "matmul":
                accumulate = np.array([row["accumulate"] == "1" for row in rows])
                plain = matmul_seconds(m, n, k, layout, silicon, batch, False, table)
                added = matmul_seconds(m, n, k, layout, silicon, batch, True, table)
                seconds = np.where(accumulate, added, plain)
            else:
                if layout == "NT":
                    # A weight gradient's rows per group are its inner size.
                    m, k = k, m
                seconds = grouped_matmul_seconds(batch, m, n, k, layout, silicon, table)
            found.append(np.log(seconds / (2 * batch * m * n * k / rate)))
    for phase in ("forward", "backward"):
        rows = [row for row in attention if row["phase"] == phase]
        if rows:
            b, s, h, dqk, dv, rate = (
                np.array([float(row[name]) for row in rows])
                for name in ("batch", "seq_len", "heads", "qk_head_dim", "v_head_dim", "tflops")
            )
            seconds = attention_seconds(phase, "cudnn", b, h, s, s, dqk, dv, silicon, table)
            products = 2.0 if phase == "forward" else 5.0
            found.append(np.log(seconds / (b * h * s * s * products * (dqk + dv) / (rate * 1e12))))
    return np.concatenate(found)


def fit(gpu: str, matmul: list[Row], attention: list[Row]) -> KernelConstants:
    """The constants of least absolute error in the logarithm, held near what one would expect."""
    from scipy.optimize import least_squares

    names = list(BOUNDS)
    low, start, high = (np.array([bound[i] for bound in BOUNDS.values()]) for i in range(3))

    def build(x: Array) -> KernelConstants:
        return KernelConstants(**dict(zip(names, map(float, x), strict=True)), source=f"fitted to {gpu}")

    def residuals(x: Array) -> Array:
        return np.concatenate([errors(gpu, build(x), matmul, attention), PRIOR_WEIGHT * (x - start) / (high - low)])

    found = least_squares(residuals, start, bounds=(low - 1e-9, high), x_scale=high - low, loss="soft_l1", f_scale=0.05)
    return build(np.round(found.x, 4))


def fit_all() -> dict[str, KernelConstants]:
    """Constants by generation; Hopper's and Volta's are Ampere's, for want of tables."""
    matmul, attention = read_table("matmul"), read_table("attention")
    result = {}
    for gpu in ("A100-PCIe-80GB", "B200-SXM-180GB"):
        result[DEVICES[gpu][0]] = fit(gpu, matmul[gpu], attention[gpu])
    known = {name: getattr(result["ampere"], name) for name in BOUNDS}
    result["hopper"] = KernelConstants(**known, source="as Ampere: no table of its own")
    result["volta"] = KernelConstants(**known, source="as Ampere: no table of its own")
    return result


def main() -> None:
    """Fit, print the errors and write the catalogue file."""
    matmul, attention = read_table("matmul"), read_table("attention")
    constants = fit_all()
    lines = ["# Written by `python -m profiles.fit_kernels` from measured/matmul.csv and measured/attention.csv."]
    for generation, values in constants.items():
        lines.append(f"\n[generations.{generation}]")
        lines += [f"{name} = {getattr(values, name):.6g}" for name in BOUNDS]
        lines.append(f'source = "{values.source}"')
    artifacts.write_text(PATH, "\n".join(lines).replace(" = 0\n", " = 0.0\n") + "\n")
    for gpu in ("A100-PCIe-80GB", "B200-SXM-180GB"):
        found = np.abs(errors(gpu, constants[DEVICES[gpu][0]], matmul[gpu], attention[gpu]))
        sys.stdout.write(f"{gpu}: median {np.median(found):.1%}, mean {found.mean():.1%} of {len(found)} points\n")


if __name__ == "__main__":
    main()
