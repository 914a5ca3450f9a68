"""The published tables of products and attention, and how far the laws are from them.

Sources, as their column `source` names them: SimuMax is github.com/MooreThreads/SimuMax, configs/system; DeepGEMM the
first README of github.com/deepseek-ai/DeepGEMM; Mist is github.com/Dazz993/Mist; ml-engineering is
github.com/stas00/ml-engineering; arXiv 2407.08608 (Shah et al. 2024) was read off a chart by a third party; the others
are repositories and threads on github.com.
"""

from __future__ import annotations

import csv
from collections.abc import Callable

import numpy as np

from profiles.catalog import CATALOG
from profiles.laws.attention import PRODUCTS, attention_seconds
from profiles.laws.kernels import Array, KernelConstants, Silicon, grouped_matmul_seconds, matmul_seconds

Row = dict[str, str]
Constants = dict[str, KernelConstants]
Errors = Callable[[Constants | None], Array]
MEASURED = CATALOG / "measured"
# Device of a table: generation, peak and best measured TFLOP/s, memory GB/s, multiprocessors, bytes of an operand,
# watts over the 16-bit peak.
DEVICES = {
    "A100-PCIe-80GB": ("ampere", 312.0, 252.9, 1935.0, 108, 2, 300 / 312),
    "A100-SXM4-40GB p4d": ("ampere", 312.0, 271.2, 1555.0, 108, 2, 400 / 312),
    "B200-SXM-180GB": ("blackwell", 2250.0, 1745.0, 7700.0, 148, 2, 1000 / 2250),
    "GB200": ("blackwell", 2500.0, 1822.0, 8000.0, 152, 2, 1200 / 2500),
    "H100": ("hopper", 989.0, 794.5, 3350.0, 132, 2, 700 / 989),
    "H100-SXM5-80GB": ("hopper", 989.0, 794.5, 3350.0, 132, 2, 700 / 989),
    "H100 (variant not stated)": ("hopper", 989.0, 794.5, 3350.0, 132, 2, 700 / 989),
    "H200": ("hopper", 989.0, 794.5, 4800.0, 132, 2, 700 / 989),
    "H800-SXM": ("hopper", 1979.0, 1402.6, 3350.0, 132, 1, 700 / 989),
    "L4 GCP": ("ada", 121.0, 57.8, 300.0, 58, 2, 72 / 121),
    "V100-SXM2-16GB p3": ("volta", 125.0, 105.8, 900.0, 80, 2, 300 / 125),
}


def read_table(name: str) -> list[Row]:
    """Rows of a shipped table."""
    with (MEASURED / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def silicon_of(rows: list[Row]) -> Silicon:
    """The devices of rows. Shapes: one entry per row."""
    found = [DEVICES[row["gpu"]] for row in rows]
    columns = (np.array([one[i] for one in found], dtype=np.float64) for i in range(1, 7))
    peak, best, memory, count, width, watts = columns
    return Silicon(
        matmul_flops_per_second=peak * 1e12,
        achievable_fraction=best / peak,
        memory_bytes_per_second=memory * 1e9,
        num_multiprocessors=count,
        element_bytes=width,
        generation=np.array([one[0] for one in found]),
        watts_per_tflops=watts,
    )


def errors(rows: list[Row], constants: Constants | None = None) -> Array:
    """Logarithm of predicted over measured seconds of every row, in order."""
    return errors_of(rows)(constants)


def errors_of(rows: list[Row]) -> Errors:
    """The same of any constants: a fit asks for hundreds, and the rows are read once."""
    kinds = [kind_of(row) for row in rows]
    parts: list[tuple[list[int], Errors]] = []
    for kind in dict.fromkeys(kinds):
        where = [i for i, one in enumerate(kinds) if one == kind]
        chosen = [rows[i] for i in where]
        parts.append((where, (_attention_errors if "phase" in chosen[0] else _matmul_errors)(chosen, *kind)))

    def of(constants: Constants | None) -> Array:
        result = np.zeros(len(rows))
        for where, part in parts:
            result[where] = part(constants)
        return result

    return of


def kind_of(row: Row) -> tuple[str, str]:
    """Phase and kernel of attention, or operation and layout of a product."""
    return (row["phase"], row["kernel"]) if "phase" in row else (row["op"], row["layout"])


def _numbers(rows: list[Row], *names: str) -> tuple[Array, ...]:
    return tuple(np.array([float(row[name]) for row in rows]) for name in names)


def _matmul_errors(rows: list[Row], op: str, layout: str) -> Errors:
    batch, m, n, k, moved, rate = _numbers(rows, "batch", "m", "n", "k", "result_bytes", "tflops")
    silicon = silicon_of(rows)

    def of(constants: Constants | None) -> Array:
        if op == "matmul":
            seconds = matmul_seconds(m, n, k, layout, silicon, batch, result_bytes=moved, constants=constants)  # type: ignore[arg-type]
        else:
            seconds = grouped_matmul_seconds(
                batch, m, n, k, layout, silicon, result_bytes=moved, constants=constants,  # type: ignore[arg-type]
            )  # fmt: skip
        return np.asarray(np.log(seconds * rate * 1e12 / (2 * batch * m * n * k)))

    return of


def _attention_errors(rows: list[Row], phase: str, kernel: str) -> Errors:
    b, s, h, kv, dqk, dv, causal, rate = _numbers(
        rows, "batch", "seq_len", "heads", "kv_heads", "qk_head_dim", "v_head_dim", "causal", "tflops"
    )
    silicon = silicon_of(rows)

    def of(constants: Constants | None) -> Array:
        seconds = attention_seconds(
            phase, kernel, b, h, s, s, dqk, dv, silicon, kv_heads=kv, causal=causal > 0, constants=constants,  # type: ignore[arg-type]
        )  # fmt: skip
        # The tables count the whole square even under a mask.
        return np.asarray(np.log(seconds * rate * 1e12 / (b * h * s * s * PRODUCTS[phase] * (dqk + dv))))  # type: ignore[index]

    return of
