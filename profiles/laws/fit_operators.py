"""Fits convolutions and recurrent layers to tables of others: `python -m profiles.laws.fit_operators FOLDER`.

The folder holds conv2.csv and rnn2.csv, as baidu-research/DeepBench published them (2016 to 2019), and smallops2.csv
with norms and element-wise kernels of linkedin/Liger-Kernel. Writes catalog/operators.toml and prints how far the laws
are from devices that were left out; matrix units are known of one device only, there shapes are left out.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from profiles.files import write_text
from profiles.laws.convolutions import PASSES, ConvolutionConstants, ConvolutionShape, convolution_seconds
from profiles.laws.fit_passes import fit_passes
from profiles.laws.kernels import Array, Silicon
from profiles.laws.operator_constants import PATH
from profiles.laws.recurrent import RecurrentConstants, recurrent_seconds

Row = dict[str, str]
# Devices of the tables: generation, plain TFLOP/s, share that their best products reach (assumed), memory GB/s,
# multiprocessors; the rest from NVIDIA's data sheets.
DEVICES = {
    "M40": ("maxwell", 7.0, 0.9, 288.0, 24),
    "TITAN X Maxwell": ("maxwell", 6.6, 0.9, 336.6, 24),
    "P100": ("pascal", 10.6, 0.9, 732.0, 56),
    "TITAN X Pascal": ("pascal", 11.0, 0.9, 480.0, 28),
    "V100-SXM2": ("volta", 15.7, 0.85, 900.0, 80),
}
MATRIX = ("V100-SXM2", 125.0, 0.846)
# The generation whose libraries the others' are held against.
REFERENCE = "volta"
GATES = {"Vanilla": 1.0, "GRU": 3.0, "LSTM": 4.0}
TIMES = dict(zip(PASSES, ("fwd_ms", "bwd_input_ms", "bwd_weight_ms"), strict=True))
# Lowest, expected, highest. What a table does not tell stays where expected.
CONVOLUTION = {
    "forward_fraction": (0.1, 0.8, 1.3),
    "data_gradient_fraction": (0.1, 0.7, 1.3),
    "weight_gradient_fraction": (0.1, 0.7, 1.3),
    "depth": (0.0, 64.0, 1024.0),
    "reuse": (4.0, 20.0, 128.0),
    "wave_share": (0.0, 0.3, 1.0),
    "blend": (1.0, 2.0, 6.0),
    "winograd": (1.0, 1.8, 4.0),
    "strided": (0.2, 0.8, 1.0),
    "unaligned": (0.2, 0.5, 1.0),
    "traffic_fraction": (0.4, 0.85, 1.0),
    "overhead_us": (2.0, 5.0, 30.0),
}
RECURRENT = {
    "fraction": (0.1, 0.7, 1.5),
    "backward_fraction": (0.1, 0.6, 1.5),
    "weight_fraction": (0.1, 0.7, 1.5),
    "step_us": (2.0, 12.0, 80.0),
    "backward_step_us": (2.0, 12.0, 80.0),
    "traffic_fraction": (0.3, 1.0, 6.0),
    "depth": (0.0, 64.0, 1024.0),
    "reuse": (4.0, 20.0, 128.0),
    "wave_share": (0.0, 0.5, 1.0),
    "blend": (1.0, 2.0, 6.0),
    "overhead_us": (5.0, 30.0, 200.0),
}
# Shares of a rate where the tables have none such: depthwise and dilated convolutions, assumed here and learned as a
# whole from trainings of networks that have them.
ASSUMED = {"depthwise_fraction": 0.4, "dilated": 0.4}
PRIOR_WEIGHT, TOLERANCE, FOLDS = 0.3, 0.1, 5
SOURCE = "baidu-research/DeepBench, results/train, {} points of {}"


@dataclass(frozen=True, slots=True)
class Law:
    """A law to fit: its constants' class and bounds, and its seconds of rows by pass."""

    kind: type[Any]
    bounds: dict[str, tuple[float, float, float]]
    seconds: Callable[[list[Row], Any], Array]

    def build(self, x: Array, source: str = "") -> Any:
        """Constants of free numbers and assumed ones."""
        names = {field.name for field in fields(self.kind)}
        rest = {name: value for name, value in ASSUMED.items() if name in names}
        return self.kind(
            **dict(zip(self.bounds, (round(float(one), 4) for one in x), strict=True)), **rest, source=source
        )


def is_matrix(row: Row) -> bool:
    """Whether a row ran on matrix units."""
    return row["gpu"] == MATRIX[0] and row["dtype"].startswith("fp16")


def silicon_of(rows: list[Row]) -> Silicon:
    """The devices of rows."""
    found = [DEVICES[row["gpu"]] for row in rows]
    on_matrix = np.array([is_matrix(row) for row in rows])
    peak = np.where(on_matrix, MATRIX[1], [one[1] for one in found])
    return Silicon(
        matmul_flops_per_second=peak * 1e12,
        achievable_fraction=np.where(on_matrix, MATRIX[2], [one[2] for one in found]),
        memory_bytes_per_second=np.array([one[3] * 1e9 for one in found]),
        num_multiprocessors=np.array([float(one[4]) for one in found]),
        element_bytes=np.where([row["dtype"].startswith("fp16") for row in rows], 2.0, 4.0),
        generation=np.array([one[0] for one in found]),
    )


def _column(rows: list[Row], *names: str) -> Array:
    """Products of columns."""
    return np.asarray(np.prod([[float(row[name]) for name in names] for row in rows], axis=1), dtype=np.float64)


def shape_of_rows(rows: list[Row]) -> ConvolutionShape:
    """The convolutions of rows."""
    one = np.ones(len(rows))
    return ConvolutionShape(
        samples=_column(rows, "batch_n"), groups=one,
        channels_in=_column(rows, "in_c"), channels_out=_column(rows, "out_c"),
        positions_in=_column(rows, "in_w", "in_h"), positions_out=_column(rows, "out_w", "out_h"),
        filter_positions=_column(rows, "filter_w", "filter_h"), stride=_column(rows, "stride_w", "stride_h"), gap=one,
    )  # fmt: skip


def convolution_rows(rows: list[Row], constants: ConvolutionConstants) -> Array:
    """Seconds of rows, a column per pass."""
    on_matrix = np.array([is_matrix(row) for row in rows])
    shape, silicon = shape_of_rows(rows), silicon_of(rows)
    return np.stack([convolution_seconds(one, shape, silicon, constants, on_matrix) for one in PASSES], 1)


def recurrent_rows(rows: list[Row], constants: RecurrentConstants) -> Array:
    """Seconds of rows, a column per pass."""
    gates, silicon = np.array([GATES[row["cell"]] for row in rows]), silicon_of(rows)
    b, t, h = (_column(rows, name) for name in ("batch", "timesteps", "hidden"))
    return np.stack([recurrent_seconds(one, b, t, h, h, gates, silicon, constants) for one in PASSES], 1)


LAWS = {"convolutions": Law(ConvolutionConstants, CONVOLUTION, convolution_rows),
        "recurrent": Law(RecurrentConstants, RECURRENT, recurrent_rows)}  # fmt: skip


def errors(law: Law, rows: list[Row], constants: Any, speeds: dict[str, float]) -> Array:
    """Logarithm of predicted over measured seconds, a column per pass; NaN where none was measured."""
    measured = np.array([[float(row[name] or "nan") for name in TIMES.values()] for row in rows]) / 1e3
    speed = np.array([speeds.get(DEVICES[row["gpu"]][0], 1.0) for row in rows])
    return np.asarray(np.log(law.seconds(rows, constants) / speed[:, None] / measured))


def generations_of(rows: list[Row]) -> list[str]:
    """Generations of rows, each once."""
    return list(dict.fromkeys(DEVICES[row["gpu"]][0] for row in rows))


def fit(law: Law, rows: list[Row]) -> tuple[Any, dict[str, float]]:
    """Constants of least robust error in the logarithm, and speeds of generations, whose libraries differ in age."""
    from scipy.optimize import least_squares

    low, start, high = (np.array([bound[i] for bound in law.bounds.values()]) for i in range(3))
    others = [name for name in generations_of(rows) if name != REFERENCE] if len(generations_of(rows)) > 1 else []

    def speeds(x: Array) -> dict[str, float]:
        return {name: float(np.exp(value)) for name, value in zip(others, x[len(start) :], strict=True)}

    def residuals(x: Array) -> Array:
        found = errors(law, rows, law.build(x[: len(start)]), speeds(x)).ravel()
        held = PRIOR_WEIGHT * (x[: len(start)] - start) / (high - low)
        return np.concatenate([found[np.isfinite(found)], held, PRIOR_WEIGHT * x[len(start) :]])

    free = np.zeros(len(others))
    bounds = (np.concatenate([low, free - 1.5]), np.concatenate([high, free + 1.5]))
    scale = np.concatenate([high - low, free + 1])
    found = least_squares(residuals, np.concatenate([start, free]), bounds=bounds, x_scale=scale, loss="soft_l1",
                          f_scale=TOLERANCE, diff_step=1e-4)  # fmt: skip
    names = ", ".join(dict.fromkeys(row["gpu"] for row in rows))
    constants = law.build(found.x[: len(start)], SOURCE.format(len(rows), names))
    return constants, {name: round(value, 4) for name, value in speeds(found.x).items()}


def report(title: str, found: Array) -> None:
    """Print how far rows are, pass by pass."""
    for name, column in zip(PASSES, found.T, strict=True):
        known = column[np.isfinite(column)]
        if not len(known):
            continue
        size = np.abs(np.expm1(known))
        sys.stdout.write(
            f"{title}: {name}: median {np.median(size):.1%}, p90 {np.quantile(size, 0.9):.1%}, "
            f"bias {np.expm1(np.median(known)):+.1%} of {len(known)}\n"
        )


def left_out(law: Law, rows: list[Row], keys: Sequence[Any]) -> Array:
    """Errors of rows, each predicted by constants fitted to the rows of other keys."""
    result = np.zeros((len(rows), len(PASSES)))
    for key in dict.fromkeys(keys):
        inside = [i for i, one in enumerate(keys) if one == key]
        constants, speeds = fit(law, [row for row, one in zip(rows, keys, strict=True) if one != key])
        result[inside] = errors(law, [rows[i] for i in inside], constants, speeds)
    return result


def read_rows(path: Path) -> list[Row]:
    """Rows of a table that state their sizes and the time of both passes of the forward step."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row.get("hidden", "1") and row["fwd_ms"]]


def as_toml(tables: dict[str, Any], speeds: dict[str, dict[str, float]]) -> str:
    """The catalogue file's text."""
    lines = [
        "# Written by `python -m profiles.laws.fit_operators FOLDER`; depthwise and dilated convolutions: assumed."
    ]
    for name, values in speeds.items():
        lines.append(f"{name} = {{ {', '.join(f'{key} = {value}' for key, value in values.items())} }}")
    for name, constants in tables.items():
        lines += ["", f"[{name}]"]
        for field in fields(constants):
            value = getattr(constants, field.name)
            lines.append(f'{field.name} = "{value}"' if isinstance(value, str) else f"{field.name} = {value}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fit, write the catalogue file and print the errors of what was left out."""
    folder = Path(sys.argv[1])
    tables: dict[str, Any] = {}
    speeds: dict[str, dict[str, float]] = {}
    for name, law in LAWS.items():
        rows = read_rows(folder / ("conv2.csv" if name == "convolutions" else "rnn2.csv"))
        for units in ("plain", "matrix"):
            chosen = [row for row in rows if is_matrix(row) == (units == "matrix")]
            keys = [row["gpu"] for row in chosen] if units == "plain" else [i % FOLDS for i in range(len(chosen))]
            found = left_out(law, chosen, keys)
            for key in dict.fromkeys(keys if units == "plain" else ["shapes"]):
                part = found[[one == key for one in keys]] if units == "plain" else found
                report(f"{name}, {units} units, left out {key}", part)
            tables[f"{units}_{name}"], own = fit(law, chosen)
            if own:
                speeds[f"{name}_speeds"] = own
            report(f"{name}, {units} units, in sample", errors(law, chosen, tables[f"{units}_{name}"], own))
    tables["passes"] = fit_passes(folder / "smallops2.csv")
    write_text(PATH, as_toml(tables, speeds))


if __name__ == "__main__":
    main()
