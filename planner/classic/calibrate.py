"""Learns from a table of trainings: `python -m planner.classic.calibrate TABLE [--list]`.

With --list the operators of the table's networks are listed afresh first, which takes half an hour. Writes
catalog/trainings.toml, and prints errors by family, each left out.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from planner.classic import bands
from planner.classic.features import features_of, generation_of
from planner.classic.learn import family_weights, learn, left_out_errors, weighted_quantile
from planner.classic.lists import Key, list_now, operator_list, write_lists
from planner.classic.memory import allocated_bytes, card_bytes, counters
from planner.classic.step import PATH, Learned, step_seconds
from planner.classic.training import Training, read_training
from planner.published.cells import Refused
from profiles.errors import InputError
from profiles.files import write_text
from profiles.laws.kernels import Array
from profiles.models.operator_list import OperatorList
from profiles.units import GIB

Row = dict[str, str]
# Assumed: spreads of a run's memory, and of what is expected (what tensors take, what is cached beside them, the
# context); expected values, where bands only hold a place until they are drawn.
MEMORY_RUN_SPREAD, MEMORY_SPREADS = 0.15, np.array([0.1, 0.05, 0.3])
VALUE = re.compile(r"'.*'.*|\".*\"")
EMPTY = Learned(
    values={}, overlap=0.6, bands=(0.5,), known=(), memory_band=0.4, allocated_multiple=1.0, device_multiple=1.25,
    context_gib=0.9, source="",
)  # fmt: skip


def read(path: Path) -> list[tuple[Row, Training]]:
    """Rows that can be predicted; how many cannot is said by reason."""
    csv.field_size_limit(1 << 20)
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found, refused = [], Counter[str]()
    for row in rows:
        try:
            found.append((row, read_training(row)))
        except Refused as reason:
            refused[VALUE.sub("...", str(reason)).partition(", ")[0]] += 1
    for text, count in refused.most_common():
        sys.stdout.write(f"{count} rows not built: {text}\n")
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


def report_bands(inside: np.ndarray, distances: np.ndarray) -> None:
    """Print the share of runs inside of bands that other families drew, by what is new of a run."""
    for distance in np.unique(distances):
        own = inside[distances == distance]
        sys.stdout.write(f"band, left out: {distance} new: {own.mean():.1%} inside of {len(own)}\n")
    sys.stdout.write(f"band, left out: all: {inside.mean():.1%} inside of {len(inside)}\n")


def memory_errors(pairs: list[tuple[Row, Training]], learned: Learned) -> Array:
    """Logarithm of predicted over measured bytes by the counter that a row names."""
    trainings = [one for _, one in pairs]
    own, reserved, device = counters(allocated_bytes(trainings), card_bytes(trainings), learned)
    kinds = np.array([row["peak_mem_kind"] for row, _ in pairs])
    made = np.where(kinds == "allocated", own, np.where(kinds == "device", device, reserved))
    return np.asarray(np.log(made / (np.array([float(row["peak_mem_gib"]) for row, _ in pairs]) * GIB)))


def fit_memory(pairs: list[tuple[Row, Training]]) -> Learned:
    """Multiples of what tensors take, and the context, of least robust error, families weighing alike."""
    from scipy.optimize import least_squares

    def build(x: Array) -> Learned:
        own, device, context = np.exp(x).tolist()
        return replace(EMPTY, allocated_multiple=own, device_multiple=device, context_gib=context)

    mean = np.log([EMPTY.allocated_multiple, EMPTY.device_multiple, EMPTY.context_gib])
    weights = family_weights(np.array([row["family"] for row, _ in pairs]))
    found = least_squares(
        lambda x: np.concatenate(
            [weights * memory_errors(pairs, build(x)) / MEMORY_RUN_SPREAD, (x - mean) / MEMORY_SPREADS]
        ),
        mean,
        loss="soft_l1",
    )
    return build(np.round(found.x, 4))


def as_toml(learned: Learned) -> str:
    """The catalogue file's text."""
    lines = [
        "# Written by `python -m planner.classic.calibrate TABLE`: multiples of the laws' seconds; `host` in seconds."
    ]
    for name in ("overlap", "memory_band", "allocated_multiple", "device_multiple", "context_gib"):
        lines.append(f"{name} = {getattr(learned, name):.4f}")
    lines.append(f"bands = [{', '.join(f'{width:.4f}' for width in learned.bands)}]")
    lines.append(f"known = [{', '.join(json.dumps(word) for word in learned.known)}]")
    lines += [f'source = "{learned.source}"', "", "[values]"]
    lines += [f'"{name}" = {value:.6g}' for name, value in learned.values.items()]
    return "\n".join(lines) + "\n"


def left_out_memory(pairs: list[tuple[Row, Training]]) -> Array:
    """Errors of memory, every family predicted by what the others taught."""
    families = [row["family"] for row, _ in pairs]
    result = np.zeros(len(pairs))
    for family in set(families):
        learned = fit_memory([pair for pair, name in zip(pairs, families, strict=True) if name != family])
        own = [place for place, name in enumerate(families) if name == family]
        result[own] = memory_errors([pairs[place] for place in own], learned)
    return result


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
    generations = np.array([generation_of(one) for _, one in timed])
    report(generations, left_out_errors(features, seconds, generations, groups, like), "generation left out")
    learned = learn(features, seconds, groups, like)
    report(families, np.log(step_seconds(features, learned) / seconds), "in sample")
    weights = np.array([row["family"] for row, _ in heavy])
    report(weights, memory_errors(heavy, like), "memory, in sample")
    memory = left_out_memory(heavy)
    report(weights, memory, "memory, left out")
    words = [bands.words_of(one) for _, one in timed]
    distances = bands.left_out_distances(words, families)
    report_bands(bands.left_out_inside(out, families, distances), distances)
    named = ", ".join(f"{(families == name).sum()} runs of {name}" for name in np.unique(families))
    learned = replace(
        learned,
        bands=bands.half_widths(out, families, distances),
        known=tuple(sorted({word for own in words for word in own})),
        memory_band=weighted_quantile(np.abs(memory), weights, bands.BAND_SHARE),
        source=f"published trainings: {named}",
    )
    write_text(PATH, as_toml(learned))


if __name__ == "__main__":
    main()
