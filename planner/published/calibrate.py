"""Learns the factors from the shipped runs and writes the catalogue: `python -m planner.published.calibrate`.

With `--show` it writes nothing and prints every shipped constant: its value, prior, and what the runs told of it.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

import numpy as np

from planner.cost.factors import BOUNDS, COMMUNICATION, PATH, PRODUCTS, STACK_NUMBERS, Learned, load_learned
from planner.cost.ingredients import ingredients_of
from planner.published.constants import LARGEST_OFFSET
from planner.published.learn import Runs, learn
from planner.published.left_out import band_scales, leave_out
from planner.published.reading import read_jobs
from profiles.catalog import CATALOG
from profiles.files import write_text

RUNS = CATALOG / "measured" / "runs.csv"
SOURCE = (
    "learned by `python -m planner.published.calibrate` from catalog/measured/runs.csv, whose rows name their sources"
)
# Runs told of a constant where they made it at least so much surer.
INFORMED_BELOW = 0.8
# A message in training may take this much of what it takes alone; beyond, a mechanism is missing.
USUAL_COMMUNICATION = (0.8, 1.3)
# Of the range of a constant: nearer to its end than this is at the bound.
AT_BOUND = 0.01


def timed_rows() -> list[dict[str, str]]:
    """The shipped rows with measured step times of quality A or B."""
    with RUNS.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["quality"] in ("A", "B") and row["step_time_s"]]


def judged_rows() -> list[dict[str, str]]:
    """Those that trained whole models, which are learned from.

    Many sharded runs of adapters took up to a second a step more than any law accounts for, probably the first step
    among a hundred: they are read and judged, and teach nothing.
    """
    return [row for row in timed_rows() if row["peft"] in ("", "none")]


def shipped_runs() -> Runs:
    """The shipped runs with measured step times of quality A or B, but for those that cannot be read."""
    rows = judged_rows()
    reading = read_jobs(rows)
    kept = [rows[index] for index in reading.accepted]
    return Runs(
        jobs=reading.jobs,
        family=np.array([row["family"] for row in kept]),
        source=np.array([row["source"] for row in kept]),
        step_seconds=np.array([float(row["step_time_s"]) for row in kept]),
    )


def learned_from() -> frozenset[str]:
    """The ids of all shipped runs: predictions of these are in sample."""
    with RUNS.open(newline="", encoding="utf-8") as stream:
        return frozenset(row["row_id"] for row in csv.DictReader(stream))


def calibrate(runs: Runs) -> Learned:
    """What all runs teach, with bands as wide as what was left out needs."""
    made = ingredients_of(runs.jobs)
    whole = learn(runs, made)
    scales = band_scales(leave_out(runs, made, whole), runs)
    return replace(whole.learned, band_scales=scales, sources={"all": SOURCE})


def as_toml(learned: Learned) -> str:
    """The catalogue file's text."""
    lines = [f"# {SOURCE}", f"band_scales = [{', '.join(f'{scale:.4f}' for scale in learned.band_scales)}]"]
    lines += _table("factors", {name: f"{value:.5f}" for name, value in asdict(learned.factors).items()})
    lines += _table("reach", {name: f"[{low}, {high}]" for name, (low, high) in learned.reach.items()})
    lines += _table("seen", {name: f"[{', '.join(map(_quoted, words))}]" for name, words in learned.seen.items()})
    for name in ("unknown", "everyone", "offsets"):
        lines += _table(name, {key: f"{value:.5f}" for key, value in getattr(learned, name).items()})
    for kind in ("groups", "stacks", "products"):
        for name, numbers in getattr(learned, kind).items():
            lines += _table(f"{kind}.{name}", {key: f"{value:.5f}" for key, value in numbers.items()})
    lines += _table("spreads", {name: f"[{low:.5f}, {high:.5f}]" for name, (low, high) in learned.spreads.items()})
    lines += _table("sources", {name: _quoted(text) for name, text in learned.sources.items()})
    return "\n".join(lines) + "\n"


def _table(name: str, values: Mapping[str, str]) -> list[str]:
    return [f"\n[{name}]", *(f"{key if key.isidentifier() else _quoted(key)} = {text}" for key, text in values.items())]


def _quoted(text: str) -> str:
    return f'"{text}"'


def _values(learned: Learned) -> Iterator[tuple[str, float, tuple[float, float] | None]]:
    """Name, value and bounds of every constant, in the units of the file."""
    for name, (low, _, high, _) in BOUNDS.items():
        yield f"factors.{name}", getattr(learned.factors, name), (low, high)
    for name, value in learned.everyone.items():
        yield f"everyone.{name}", value, (STACK_NUMBERS[name].low, STACK_NUMBERS[name].high)
    for kind in ("groups", "stacks"):
        for word, numbers in getattr(learned, kind).items():
            for name, value in numbers.items():
                yield f"{kind}.{word}.{name}", value, (STACK_NUMBERS[name].low, STACK_NUMBERS[name].high)
    for word, numbers in learned.products.items():
        for name, value in numbers.items():
            yield f"products.{word}.{name}", value, (PRODUCTS.low, PRODUCTS.high)
    for name, value in learned.offsets.items():
        yield f"offsets.{name}", value, (-LARGEST_OFFSET, LARGEST_OFFSET)


def _warnings(name: str, value: float, bounds: tuple[float, float] | None) -> list[str]:
    result, last = [], name.split(".")[-1]
    if bounds and min(value - bounds[0], bounds[1] - value) <= AT_BOUND * (bounds[1] - bounds[0]):
        result.append(f"warning: {name} is {value:.3f}, at a bound ({bounds[0]:g} to {bounds[1]:g})")
    low, high = USUAL_COMMUNICATION
    if last in COMMUNICATION and not low <= value <= high:
        result.append(f"warning: {name} is {value:.3f}, not {low:g} to {high:g}: a mechanism of messages is missing")
    return result


def shown(learned: Learned) -> list[str]:
    """Lines of a table of all constants, and a warning for each that is suspicious."""
    # Spreads are of the logarithm, but for factors that may be 0.
    lines = [f"{'constant':44} {'value':>8} {'prior':>8} {'after':>8}  runs told (share of the prior's spread left)"]
    warnings = []
    for name, value, bounds in _values(learned):
        before, after = learned.spreads[name]
        left = after / before
        told = "yes" if left < INFORMED_BELOW else "no, it keeps its prior"
        lines.append(f"{name:44} {value:8.4f} {before:8.4f} {after:8.4f}  {told} ({left:.0%})")
        warnings += _warnings(name, value, bounds)
    informed = sum(after / before < INFORMED_BELOW for before, after in learned.spreads.values())
    lines.append(f"{len(learned.spreads)} constants, of which runs told of {informed}")
    return [*lines, *warnings]


if __name__ == "__main__":
    if "--show" in sys.argv[1:]:
        sys.stdout.write("\n".join(shown(load_learned())) + "\n")
    else:
        found = calibrate(shipped_runs())
        write_text(PATH, as_toml(found))
        sys.stdout.write("\n".join(shown(found)) + "\n")
