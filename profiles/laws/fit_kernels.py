"""Fits the constants of profiles/laws/kernels to the published tables: `python -m profiles.laws.fit_kernels`."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from profiles.files import write_text
from profiles.laws.kernel_tables import DEVICES, Row, errors, errors_of, kind_of, read_table
from profiles.laws.kernels import NUMBERS, PATH, Array, KernelConstants

# Devices that a generation is fitted to; the others of the tables only judge the law.
FITTED = {
    "ampere": ("A100-PCIe-80GB",),
    "blackwell": ("B200-SXM-180GB",),
    "hopper": ("H800-SXM", "H100", "H100-SXM5-80GB", "H200"),
    "volta": ("V100-SXM2-16GB p3",),
}
# Lowest, expected, highest.
BOUNDS: dict[str, tuple[float, float, float]] = {
    "rate_fraction": (0.5, 0.9, 1.0),
    "nn_relative": (0.85, 1.0, 1.05),
    "nt_relative": (0.85, 0.98, 1.05),
    "depth": (0.0, 128.0, 1024.0),
    "reuse": (4.0, 16.0, 64.0),
    "wave_share": (0.1, 0.5, 1.0),
    "traffic_fraction": (0.6, 0.85, 1.0),
    "blend": (1.0, 2.0, 6.0),
    # Blackwell's is at its end: its shortest products were timed with their launches.
    "overhead_us": (1.0, 3.0, 6.0),
    "grouped_fraction": (0.6, 0.95, 1.05),
    "grouped_overhead_us": (0.0, 0.5, 10.0),
    "burst": (1.0, 1.05, 1.7),
    "burst_us": (20.0, 200.0, 1000.0),
    "attention_forward_fraction": (0.4, 0.9, 1.3),
    "attention_backward_fraction": (0.3, 0.8, 1.3),
    "attention_forward_wide": (0.6, 0.85, 1.0),
    "attention_backward_wide": (0.6, 0.85, 1.0),
    "attention_blend": (1.0, 2.0, 8.0),
    "attention_ramp": (0.0, 64.0, 512.0),
}
PRIOR_WEIGHT, TOLERANCE = 0.1, 0.05
# A fit ends where a step gains less than this share of its cost, or after so many.
LEAST_GAIN, MOST_STEPS = 1e-5, 60
# Generations whose tables have products long enough to be held by power.
HELD_BY_POWER, LEAST_BURST = ("ampere", "blackwell"), 1e-4
# The attention kernel that a generation's law is fitted to; others are so much faster or slower at every shape.
REFERENCE = {"ampere": "flash2", "blackwell": "cudnn", "hopper": "cudnn", "volta": "flash2"}
# What the fit does not find, assumed: softmax FLOPs forward and backward, the power by which they add up to those of
# products, queries of a block. Softmax: what separates heads of 64 from 128. On Ampere in the charts of Dao 2023 (arXiv
# 2307.08691), as remembered, not looked up; on Hopper and Blackwell in steps of Llama 3.2 1B at 8,192 and 16,384 tokens
# (NVIDIA/cudnn-frontend), whose difference is attention; on Volta by guess. Blackwell has the exponentials of Hopper
# for twice the products: as many cycles as products of heads of 128 take, hidden behind them; backward has twice.
ASSUMED: dict[str, tuple[float, float, float, float]] = {
    "volta": (64.0, 320.0, 1.0, 128.0),
    "ampere": (115.0, 300.0, 1.0, 128.0),
    "hopper": (150.0, 150.0, 1.0, 128.0),
    "blackwell": (512.0, 1024.0, 4.0, 256.0),
}
# Of the board that a generation is fitted on: watts over the 16-bit peak in TFLOP/s, and the shares of the peaks of the
# best products in 16 and 8 bits. V100 SXM (Mist), A100 PCIe, H100 and H200 SXM, B200 (ml-engineering, 2026). Last, what
# is sustained of a table of short runs, as Hopper's are: at 1.05 pJ per FLOP, between the 1.25 of A100 and the 0.88 of
# B200 in SimuMax's tables, whose large products ran long enough to be held by power.
BOARDS: dict[str, tuple[float, float, float, float]] = {
    "volta": (300.0 / 125.0, 0.846, 0.846, 1.0),
    "ampere": (300.0 / 312.0, 0.8106, 0.8106, 1.0),
    "hopper": (700.0 / 989.0, 0.8033, 0.7344, 0.84),
    "blackwell": (1000.0 / 2250.0, 0.7756, 0.7628, 1.0),
    "cdna3": (750.0 / 1307.0, 0.5114, 0.4516, 0.82),
}
# Generations whose products have no table by shape: they have the shapes of another's, and a board of their own.
# MI300X: best product in 16 bits of ml-engineering (2026); in 8 bits 1273 TFLOP/s (AMD's blog on achievable FLOPs, part
# 2, 2025), less what values of a normal distribution take off an MI325X (1409 of 1519). Sustained: what ten products
# of DeepSeek V3 reach on an MI325X, each for 30 s, 616 TFLOP/s where the best reaches 831 and 1143 where 1409 (AMD's
# blog on typical FLOPs, October 2026); between the 0.81 and the 0.92 which that takes here.
SHAPED_AS = {"cdna3": "ampere"}
SOURCES = {"cdna3": "ml-engineering, 2026; ROCm blogs on achievable (2025) and typical FLOPs (2026)"}
# Speeds, forward and backward, against another kernel where no table has them. FlashAttention 1 reaches 25 to 40 % of
# an A100's peak and 2 reaches 50 to 73 % (Dao 2023); PyTorch's memory-efficient kernel takes 2.7 times as long as 2 in
# those steps of Llama 3.2 1B; FlexAttention has 90 and 85 % of FlashAttention 2 (PyTorch's blog, 2024). FlashAttention
# 3 needs Hopper, 4 was written for Blackwell; elsewhere they count as 2. "flash" is the usual one of its day, on Hopper
# between 2 and cuDNN's.
RELATIVE: dict[str, tuple[str, float, float]] = {
    "flash1": ("flash2", 0.6, 0.5),
    "mem_efficient": ("flash2", 0.42, 0.35),
    "flex": ("flash2", 0.9, 0.85),
    "flash3": ("flash2", 1.0, 1.0),
    "flash4": ("flash3", 1.0, 1.0),
    "cudnn": ("flash2", 1.0, 1.0),
    "flash2": ("cudnn", 0.55, 0.58),
}
# Hopper's FlashAttention 4 is 3 written anew.
RELATIVE_IN: dict[str, dict[str, tuple[str, float, float]]] = {"hopper": {"flash3": ("flash4", 1.0, 1.0)}}
USUAL = {"ampere": ("flash2",), "blackwell": ("cudnn",), "hopper": ("flash2", "cudnn"), "volta": ("mem_efficient",)}
KERNELS = ("flash1", "mem_efficient", "flex", "flash2", "flash3", "flash4", "cudnn")


def fit(generation: str, rows: list[Row], expected: Array | None = None) -> KernelConstants:
    """The constants of least robust error in the logarithm, held near `expected` where the rows do not tell."""
    from scipy.optimize import least_squares

    low, start, high = (np.array([bound[i] for bound in BOUNDS.values()]) for i in range(3))
    if generation not in HELD_BY_POWER:
        high[list(BOUNDS).index("burst")] = 1.0 + LEAST_BURST
    expected = np.clip(start if expected is None else expected, low, high)
    forward, backward, power, block = ASSUMED[generation]
    watts, best, low_best, held = BOARDS[generation]
    of_rows = errors_of(rows)

    def build(x: Array) -> KernelConstants:
        return KernelConstants(
            **dict(zip(BOUNDS, map(float, x), strict=True)),
            attention_forward_softmax=forward,
            attention_backward_softmax=backward,
            attention_softmax_blend=power,
            attention_block=block,
            kernels={REFERENCE[generation]: (1.0, 1.0)},
            board_watts_per_tflops=watts,
            board_share=best,
            board_low_share=low_best,
            sustained_fraction=held,
            source=_source(rows),
        )

    def residuals(x: Array) -> Array:
        return np.concatenate([of_rows({generation: build(x)}), PRIOR_WEIGHT * (x - expected) / (high - low)])

    found = least_squares(
        residuals, np.clip(expected, low + 1e-6, high - 1e-6), bounds=(low, high), x_scale=high - low,
        loss="soft_l1", f_scale=TOLERANCE, diff_step=1e-4, ftol=LEAST_GAIN, max_nfev=MOST_STEPS,
    )  # fmt: skip
    constants = build(np.round(found.x, 4))
    return replace(constants, kernels=speeds(generation, constants))


def speeds(generation: str, constants: KernelConstants) -> dict[str, tuple[float, float]]:
    """Speeds of all attention kernels against the one that was fitted: the median of the tables', else RELATIVE's."""
    rows = [row for row in read_table("attention") if DEVICES[row["gpu"]][0] == generation]

    def measured(kernel: str, phase: str) -> float | None:
        own = [row for row in rows if (row["kernel"], row["phase"]) == (kernel, phase)]
        if not own:
            return None
        found = errors(own, {generation: replace(constants, kernels={kernel: (1.0, 1.0)})})
        return round(float(np.exp(np.median(found))), 3)

    def speed(kernel: str, place: int) -> float:
        if kernel == REFERENCE[generation]:
            return 1.0
        found = measured(kernel, ("forward", "backward")[place])
        other, *factors = (RELATIVE | RELATIVE_IN.get(generation, {}))[kernel]
        return round(speed(other, place) * factors[place], 3) if found is None else found

    both = {kernel: (speed(kernel, 0), speed(kernel, 1)) for kernel in KERNELS}
    usual = np.exp(np.mean(np.log([both[kernel] for kernel in USUAL[generation]]), axis=0))
    return both | {"flash": (round(float(usual[0]), 3), round(float(usual[1]), 3))}


def _source(rows: list[Row]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        name = f"{row['gpu']}, {row['source']}"
        counts[name] = counts.get(name, 0) + 1
    return "; ".join(f"{number} points of {name}" for name, number in counts.items())


def rows_of(generation: str) -> list[Row]:
    """What a generation is fitted to: products, then attention."""
    products = [row for row in read_table("matmul") if row["gpu"] in FITTED[generation]]
    own = (FITTED[generation], REFERENCE[generation])
    return products + [row for row in read_table("attention") if row["gpu"] in own[0] and row["kernel"] == own[1]]


def _expected(generation: str) -> Array | None:
    """Where the rows are silent: Hopper lies between Ampere and Blackwell, Volta is as Ampere."""
    if generation not in ("hopper", "volta"):
        return None
    relatives = ("ampere", "blackwell") if generation == "hopper" else ("ampere",)
    known = [fit(name, rows_of(name)) for name in relatives]
    return np.asarray(np.mean([[getattr(one, field) for field in BOUNDS] for one in known], axis=0))


def fit_all() -> dict[str, KernelConstants]:
    """Constants by generation."""
    found = {name: fit(name, rows_of(name), _expected(name)) for name in FITTED}
    return found | {name: boarded(found[other], name) for name, other in SHAPED_AS.items()}


def boarded(constants: KernelConstants, generation: str) -> KernelConstants:
    """The kernels of another generation on the board of one without tables."""
    watts, best, low_best, held = BOARDS[generation]
    return replace(
        constants,
        rate_fraction=1.0,
        board_watts_per_tflops=watts,
        board_share=best,
        board_low_share=low_best,
        sustained_fraction=held,
        source=f"shapes of {SHAPED_AS[generation]}; board: {SOURCES[generation]}",
    )


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
             "# Softmax, attention_block and kernels that no table has are assumed: profiles/laws/fit_kernels.py.",
             ]  # fmt: skip
    for name, values in constants.items():
        lines += ["", f"[generations.{name}]", *(f"{field} = {getattr(values, field) + 0.0:.4f}" for field in NUMBERS)]
        kernels = ", ".join(f"{kernel} = [{ahead}, {back}]" for kernel, (ahead, back) in values.kernels.items())
        lines += [f"kernels = {{ {kernels} }}", f'source = "{values.source}"']
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fit, write the catalogue file and print the errors, those of Ampere, Blackwell and Hopper held out."""
    constants = fit_all()
    write_text(PATH, as_toml(constants))
    report = [(f"{name} held out", rows_of(name), held_out_errors(name)) for name in ("ampere", "blackwell", "hopper")]
    report += [(name, rows, errors(rows, constants)) for name in ("matmul", "attention") for rows in [read_table(name)]]
    for title, rows, found in report:
        groups = [(row["gpu"], *kind_of(row)) for row in rows]
        for group in dict.fromkeys(groups):
            part = found[[one == group for one in groups]]
            sys.stdout.write(
                f"{title}: {' '.join(group)}: median {np.median(np.abs(part)):.1%}, mean {np.abs(part).mean():.1%}, "
                f"bias {np.expm1(np.median(part)):+.1%} of {len(part)}\n"
            )


if __name__ == "__main__":
    main()
