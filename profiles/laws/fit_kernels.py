"""Fits the constants of profiles/laws/kernels to the published tables: `python -m profiles.laws.fit_kernels`.

Sources of the tables, as their column `source` names them: SimuMax is github.com/MooreThreads/SimuMax, configs/system;
DeepGEMM the first README of github.com/deepseek-ai/DeepGEMM; Mist is github.com/Dazz993/Mist; ml-engineering is
github.com/stas00/ml-engineering; arXiv 2407.08608 (Shah et al. 2024) was read off a chart by a third party.
"""

from __future__ import annotations

import csv
import sys

import numpy as np

from profiles.catalog import CATALOG
from profiles.files import write_text
from profiles.laws.kernels import (
    NUMBERS,
    PATH,
    PRODUCTS,
    Array,
    KernelConstants,
    Silicon,
    attention_seconds,
    grouped_matmul_seconds,
    matmul_seconds,
)

Row = dict[str, str]
MEASURED = CATALOG / "measured"
# Device of a table: generation, peak and best measured TFLOP/s, memory GB/s, multiprocessors, bytes of an operand.
DEVICES = {
    "A100-PCIe-80GB": ("ampere", 312.0, 252.9, 1935.0, 108, 2),
    "A100-SXM4-40GB p4d": ("ampere", 312.0, 271.2, 1555.0, 108, 2),
    "B200-SXM-180GB": ("blackwell", 2250.0, 1745.0, 7700.0, 148, 2),
    "H100-SXM5-80GB": ("hopper", 989.0, 794.5, 3350.0, 132, 2),
    "H100 (variant not stated)": ("hopper", 989.0, 794.5, 3350.0, 132, 2),
    "H800-SXM": ("hopper", 1979.0, 1402.6, 3350.0, 132, 1),
    "L4 GCP": ("ada", 121.0, 57.8, 300.0, 58, 2),
    "V100-SXM2-16GB p3": ("volta", 125.0, 105.8, 900.0, 80, 2),
}
# Devices that a generation is fitted to; the others of the tables only judge the law.
FITTED = {
    "ampere": ("A100-PCIe-80GB",),
    "blackwell": ("B200-SXM-180GB",),
    "hopper": ("H800-SXM", "H100-SXM5-80GB"),
    "volta": ("V100-SXM2-16GB p3",),
}
# Lowest, expected, highest.
BOUNDS: dict[str, tuple[float, float, float]] = {
    "rate_fraction": (0.5, 0.9, 1.1),
    "nn_relative": (0.85, 1.0, 1.05),
    "nt_relative": (0.85, 0.98, 1.05),
    "depth": (0.0, 128.0, 1024.0),
    "reuse": (4.0, 16.0, 64.0),
    "wave_share": (0.1, 0.5, 1.0),
    "traffic_fraction": (0.6, 0.85, 1.0),
    "blend": (1.0, 2.0, 6.0),
    "overhead_us": (1.0, 3.0, 6.0),
    "grouped_fraction": (0.6, 0.95, 1.05),
    "grouped_overhead_us": (0.0, 0.5, 10.0),
    "attention_forward_fraction": (0.4, 0.9, 1.3),
    "attention_backward_fraction": (0.3, 0.8, 1.3),
    "attention_forward_wide": (0.6, 0.85, 1.0),
    "attention_backward_wide": (0.6, 0.85, 1.0),
    "attention_blend": (1.0, 2.0, 8.0),
    "attention_ramp": (0.0, 64.0, 512.0),
}
PRIOR_WEIGHT, TOLERANCE = 0.1, 0.05
# What the fit does not find, assumed. Softmax: what separates heads of 64 from 128 in the charts of Dao 2023 (arXiv
# 2307.08691) and Shah et al. 2024, as remembered, not looked up; on Blackwell as on Hopper, on Volta by guess. Kernels
# against the one that a generation is fitted to (FlashAttention 2 on Ampere, 3 on Hopper, cuDNN on Blackwell): Hopper's
# flash2 and cudnn are set from the very points of the table, flash1 is about 0.6 of flash2, Blackwell's flash2 is
# Hopper's; FlashAttention 3 needs Hopper, elsewhere it counts as 2; "flash" is the one of its day, on Hopper half-way
# between flash2 and cudnn.
AMPERE_KERNELS = {"flash1": 0.6, "flash2": 1.0, "flash3": 1.0, "cudnn": 1.0, "flash": 1.0}
ASSUMED: dict[str, tuple[float, float, float, dict[str, float]]] = {
    # Softmax FLOPs forward and backward, queries of a block, kernels.
    "volta": (64.0, 320.0, 128.0, AMPERE_KERNELS),
    "ampere": (115.0, 570.0, 128.0, AMPERE_KERNELS),
    "hopper": (220.0, 290.0, 128.0, {"flash1": 0.35, "flash2": 0.58, "flash3": 1.0, "cudnn": 0.97, "flash": 0.78}),
    "blackwell": (220.0, 290.0, 256.0, {"flash1": 0.35, "flash2": 0.58, "flash3": 0.58, "cudnn": 1.0, "flash": 1.0}),
}


def read_table(name: str) -> list[Row]:
    """Rows of a shipped table."""
    with (MEASURED / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def silicon_of(rows: list[Row]) -> Silicon:
    """The devices of rows. Shapes: one entry per row."""
    found = [DEVICES[row["gpu"]] for row in rows]
    peak, best, memory, count, width = (np.array([one[i] for one in found], dtype=np.float64) for i in range(1, 6))
    return Silicon(
        matmul_flops_per_second=peak * 1e12,
        achievable_fraction=best / peak,
        memory_bytes_per_second=memory * 1e9,
        num_multiprocessors=count,
        element_bytes=width,
        generation=np.array([one[0] for one in found]),
    )


def errors(rows: list[Row], constants: dict[str, KernelConstants] | None = None) -> Array:
    """Logarithm of predicted over measured seconds of every row, in order."""
    result = np.zeros(len(rows))
    kinds = [_kind(row) for row in rows]
    for kind in dict.fromkeys(kinds):
        where = [i for i, one in enumerate(kinds) if one == kind]
        chosen = [rows[i] for i in where]
        result[where] = (_attention_errors if "phase" in chosen[0] else _matmul_errors)(chosen, *kind, constants)
    return result


def _kind(row: Row) -> tuple[str, str]:
    return (row["phase"], row["kernel"]) if "phase" in row else (row["op"], row["layout"])


def _numbers(rows: list[Row], *names: str) -> tuple[Array, ...]:
    return tuple(np.array([float(row[name]) for row in rows]) for name in names)


def _matmul_errors(rows: list[Row], op: str, layout: str, constants: dict[str, KernelConstants] | None) -> Array:
    batch, m, n, k, moved, rate = _numbers(rows, "batch", "m", "n", "k", "result_bytes", "tflops")
    silicon = silicon_of(rows)
    if op == "matmul":
        seconds = matmul_seconds(m, n, k, layout, silicon, batch, result_bytes=moved, constants=constants)  # type: ignore[arg-type]
    else:
        seconds = grouped_matmul_seconds(batch, m, n, k, layout, silicon, constants)  # type: ignore[arg-type]
    return np.asarray(np.log(seconds * rate * 1e12 / (2 * batch * m * n * k)))


def _attention_errors(rows: list[Row], phase: str, kernel: str, constants: dict[str, KernelConstants] | None) -> Array:
    b, s, h, kv, dqk, dv, causal, rate = _numbers(
        rows, "batch", "seq_len", "heads", "kv_heads", "qk_head_dim", "v_head_dim", "causal", "tflops"
    )
    seconds = attention_seconds(
        phase, kernel, b, h, s, s, dqk, dv, silicon_of(rows), kv_heads=kv, causal=causal > 0, constants=constants,  # type: ignore[arg-type]
    )  # fmt: skip
    # The tables count the whole square even under a mask.
    return np.asarray(np.log(seconds * rate * 1e12 / (b * h * s * s * PRODUCTS[phase] * (dqk + dv))))  # type: ignore[index]


def fit(generation: str, rows: list[Row], expected: Array | None = None) -> KernelConstants:
    """The constants of least robust error in the logarithm, held near `expected` where the rows do not tell."""
    from scipy.optimize import least_squares

    low, start, high = (np.array([bound[i] for bound in BOUNDS.values()]) for i in range(3))
    expected = start if expected is None else expected
    forward, backward, block, kernels = ASSUMED[generation]

    def build(x: Array) -> KernelConstants:
        return KernelConstants(
            **dict(zip(BOUNDS, map(float, x), strict=True)),
            attention_forward_softmax=forward,
            attention_backward_softmax=backward,
            attention_block=block,
            kernels=kernels,
            source=_source(rows),
        )

    def residuals(x: Array) -> Array:
        return np.concatenate([errors(rows, {generation: build(x)}), PRIOR_WEIGHT * (x - expected) / (high - low)])

    found = least_squares(
        residuals, np.clip(expected, low + 1e-6, high - 1e-6), bounds=(low, high), x_scale=high - low,
        loss="soft_l1", f_scale=TOLERANCE, diff_step=1e-4,
    )  # fmt: skip
    return build(np.round(found.x, 4))


def _source(rows: list[Row]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        name = f"{row['gpu']}, {row['source']}"
        counts[name] = counts.get(name, 0) + 1
    return "; ".join(f"{number} points of {name}" for name, number in counts.items())


def rows_of(generation: str) -> list[Row]:
    """What a generation is fitted to: products, then attention."""
    return [row for name in ("matmul", "attention") for row in read_table(name) if row["gpu"] in FITTED[generation]]


def _expected(generation: str) -> Array | None:
    """Where the rows are silent: Hopper lies between Ampere and Blackwell, Volta is as Ampere."""
    if generation not in ("hopper", "volta"):
        return None
    relatives = ("ampere", "blackwell") if generation == "hopper" else ("ampere",)
    known = [fit(name, rows_of(name)) for name in relatives]
    return np.asarray(np.mean([[getattr(one, field) for field in BOUNDS] for one in known], axis=0))


def fit_all() -> dict[str, KernelConstants]:
    """Constants by generation."""
    return {name: fit(name, rows_of(name), _expected(name)) for name in FITTED}


def fold_of(rows: list[Row], count: int = 5) -> Array:
    """Fold of every row: rows of one weight, whatever the layout, or of one attention lie in the same."""

    def key(row: Row) -> tuple[str, ...]:
        if "phase" in row:
            return (row["seq_len"], row["heads"], row["kv_heads"], row["qk_head_dim"])
        return tuple(sorted((row["m"], row["n"]) if row["layout"] == "NT" else (row["n"], row["k"])))

    keys = [key(row) for row in rows]
    order = {one: i for i, one in enumerate(sorted(set(keys)))}
    return np.array([order[one] % count for one in keys])


def held_out_errors(generation: str, count: int = 5) -> Array:
    """Errors of a generation's rows, each predicted by constants fitted to the other folds."""
    rows = rows_of(generation)
    folds, result, expected = fold_of(rows, count), np.zeros(len(rows)), _expected(generation)
    for fold in range(count):
        constants = fit(generation, [row for row, own in zip(rows, folds, strict=True) if own != fold], expected)
        inside = np.flatnonzero(folds == fold).tolist()
        result[inside] = errors([rows[i] for i in inside], {generation: constants})
    return result


def as_toml(constants: dict[str, KernelConstants]) -> str:
    """The catalogue file's text."""
    lines = ["# Written by `python -m profiles.laws.fit_kernels` from measured/matmul.csv and measured/attention.csv.",
             "# Softmax, attention_block and kernels are assumed: see ASSUMED in profiles/laws/fit_kernels.py.",
             ]  # fmt: skip
    for name, values in constants.items():
        lines += ["", f"[generations.{name}]", *(f"{field} = {getattr(values, field) + 0.0:.4f}" for field in NUMBERS)]
        kernels = ", ".join(f"{kernel} = {speed}" for kernel, speed in values.kernels.items())
        lines += [f"kernels = {{ {kernels} }}", f'source = "{values.source}"']
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fit, write the catalogue file and print the errors, those of Ampere, Blackwell and Hopper held out."""
    constants = fit_all()
    write_text(PATH, as_toml(constants))
    report = [(f"{name} held out", rows_of(name), held_out_errors(name)) for name in ("ampere", "blackwell", "hopper")]
    report += [(name, rows, errors(rows, constants)) for name in ("matmul", "attention") for rows in [read_table(name)]]
    for title, rows, found in report:
        groups = [(row["gpu"], *_kind(row)) for row in rows]
        for group in dict.fromkeys(groups):
            part = found[[one == group for one in groups]]
            sys.stdout.write(
                f"{title}: {' '.join(group)}: median {np.median(np.abs(part)):.1%}, mean {np.abs(part).mean():.1%}, "
                f"bias {np.expm1(np.median(part)):+.1%} of {len(part)}\n"
            )


if __name__ == "__main__":
    main()
