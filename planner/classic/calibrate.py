"""Learns from a table of trainings: `python -m planner.classic.calibrate TABLE [--list]`.

With --list the operators of the table's networks are listed afresh first, which takes half an hour. Writes
catalog/trainings.toml, and prints errors by family, each left out.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from planner.classic.features import features_of
from planner.classic.learn import learn, left_out_errors, weighted_quantile
from planner.classic.lists import Key, list_now, operator_list, write_lists
from planner.classic.memory import allocated_bytes, counters
from planner.classic.step import PATH, Learned, step_seconds
from planner.classic.training import Training, read_training
from planner.published.cells import Refused
from profiles.errors import InputError
from profiles.files import write_text
from profiles.laws.kernels import Array
from profiles.models.operator_list import OperatorList
from profiles.units import GIB

Row = dict[str, str]
EMPTY = Learned(
    values={}, overlap=0.6, band=0.5, memory_band=0.4, allocated_multiple=1.0, device_multiple=1.25, context_gib=0.9,
    source="",
)  # fmt: skip
BAND_SHARE = 0.9


def read(path: Path) -> list[tuple[Row, Training]]:
    """Rows that can be predicted and are fit to learn from."""
    csv.field_size_limit(1 << 20)
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found = []
    for row in rows:
        try:
            found.append((row, read_training(row)))
        except Refused:
            continue
    return found


def list_all(pairs: list[tuple[Row, Training]]) -> None:
    """List the networks of rows and write the shipped file; what cannot be listed is said."""
    keys: dict[Key, None] = {}
    for _, one in pairs:
        for sizes in (one.sizes, one.memory_sizes):
            keys[(one.network, sizes, one.list_precision)] = None
    lists: list[tuple[Key, OperatorList]] = []
    for key in keys:
        try:
            lists.append((key, list_now(*key)))
        except InputError as reason:
            sys.stdout.write(f"{reason}\n")
    write_lists(lists)


def usable(pairs: list[tuple[Row, Training]], column: str, quality: str) -> list[tuple[Row, Training]]:
    """Pairs whose measurement is there and fit, and whose networks can be listed."""
    fit = [(row, one) for row, one in pairs if row.get(column) and not row.get(quality, "").startswith("C")]
    return [(row, one) for row, one in fit if _is_listed(one)]


def _is_listed(training: Training) -> bool:
    try:
        operator_list(training.network, training.sizes, training.list_precision)
        operator_list(training.network, training.memory_sizes, training.list_precision)
    except InputError:
        return False
    return True


def report(families: np.ndarray, errors: Array, title: str) -> None:
    """Print errors by family, and of all."""
    for name in (*np.unique(families), "all"):
        own = errors[families == name] if name != "all" else errors
        size = np.abs(np.expm1(own))
        sys.stdout.write(
            f"{title}: {name}: median {np.median(size):.1%}, p90 {np.quantile(size, 0.9):.1%}, "
            f"bias {np.expm1(np.median(own)):+.1%} of {len(own)}\n"
        )


def memory_errors(pairs: list[tuple[Row, Training]], learned: Learned) -> Array:
    """Logarithm of predicted over measured bytes by the counter that a row names."""
    own, reserved, device = counters(allocated_bytes([one for _, one in pairs]), learned)
    kinds = np.array([row["peak_mem_kind"] for row, _ in pairs])
    made = np.where(kinds == "allocated", own, np.where(kinds == "device", device, reserved))
    return np.asarray(np.log(made / (np.array([float(row["peak_mem_gib"]) for row, _ in pairs]) * GIB)))


def fit_memory(pairs: list[tuple[Row, Training]]) -> Learned:
    """Multiples of what tensors take, and the context, of least absolute error."""
    from scipy.optimize import least_squares

    def build(x: Array) -> Learned:
        return replace(EMPTY, allocated_multiple=float(x[0]), device_multiple=float(x[1]), context_gib=float(x[2]))

    start = np.array([1.0, 1.25, 0.9])
    low, high = np.array([0.8, 1.0, 0.4]), np.array([1.4, 1.8, 2.0])
    found = least_squares(
        lambda x: memory_errors(pairs, build(x)), start, bounds=(low, high), loss="soft_l1", f_scale=0.1
    )
    return build(np.round(found.x, 3))


def as_toml(learned: Learned) -> str:
    """The catalogue file's text."""
    lines = [
        "# Written by `python -m planner.classic.calibrate TABLE`: multiples of the laws' seconds; `host` in seconds."
    ]
    for name in ("overlap", "band", "memory_band", "allocated_multiple", "device_multiple", "context_gib"):
        lines.append(f"{name} = {getattr(learned, name):.4f}")
    lines += [f'source = "{learned.source}"', "", "[values]"]
    lines += [f'"{name}" = {value:.6g}' for name, value in learned.values.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """List where asked, learn, write, and print what leaving families out gives."""
    pairs = read(Path(sys.argv[1]))
    if "--list" in sys.argv:
        list_all(pairs)
    heavy = usable(pairs, "peak_mem_gib", "quality_mem")
    like = fit_memory(heavy)
    timed = usable(pairs, "step_time_s", "quality")
    families = np.array([row["family"] for row, _ in timed])
    seconds = np.array([float(row["step_time_s"]) for row, _ in timed])
    features = features_of([one for _, one in timed])
    groups = np.array([f"{row['family']} {one.network}" for row, one in timed])
    out = left_out_errors(features, seconds, families, groups, like)
    report(families, out, "left out")
    learned = learn(features, seconds, groups, like)
    report(families, np.log(step_seconds(features, learned) / seconds), "in sample")
    weights = np.array([row["family"] for row, _ in heavy])
    memory = memory_errors(heavy, like)
    report(weights, memory, "memory")
    named = ", ".join(f"{(families == name).sum()} runs of {name}" for name in np.unique(families))
    learned = replace(
        learned, band=weighted_quantile(np.abs(out), families, BAND_SHARE),
        memory_band=weighted_quantile(np.abs(memory), weights, BAND_SHARE), source=f"published trainings: {named}",
    )  # fmt: skip
    write_text(PATH, as_toml(learned))


if __name__ == "__main__":
    main()
