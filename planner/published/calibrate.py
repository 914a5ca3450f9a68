"""Learns the factors from the shipped runs and writes the catalogue: `python -m planner.published.calibrate`."""

from __future__ import annotations

import csv
from dataclasses import asdict, replace

import numpy as np

from planner.cost.error_bands import scale_for
from planner.cost.factors import PATH, Learned
from planner.cost.ingredients import ingredients_of
from planner.published.learn import Runs, family_weights, learn, leave_one_family_out
from planner.published.reading import read_jobs
from profiles.catalog import CATALOG
from profiles.files import write_text

RUNS = CATALOG / "measured" / "runs.csv"
SOURCE = (
    "learned by `python -m planner.published.calibrate` from catalog/measured/runs.csv, whose rows name their sources"
)


def shipped_runs() -> Runs:
    """The shipped runs with measured step times of quality A or B."""
    with RUNS.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["quality"] in ("A", "B") and row["step_time_s"]]
    reading = read_jobs(rows)
    kept = [rows[index] for index in reading.accepted]
    return Runs(
        jobs=reading.jobs,
        family=np.array([row["family"] for row in kept]),
        step_seconds=np.array([float(row["step_time_s"]) for row in kept]),
    )


def learned_from() -> frozenset[str]:
    """The ids of all shipped runs: predictions of these are in sample."""
    with RUNS.open(newline="", encoding="utf-8") as stream:
        return frozenset(row["row_id"] for row in csv.DictReader(stream))


def calibrate(runs: Runs) -> Learned:
    """What all runs teach, with bands as wide as left-out families need."""
    made = ingredients_of(runs.jobs)
    left_out = leave_one_family_out(runs, made)
    errors = np.log(left_out.step_seconds / runs.step_seconds)
    scale = scale_for(errors, left_out.spread, family_weights(runs.family))
    return replace(learn(runs, made), band_scale=scale, sources={"all": SOURCE})


def as_toml(learned: Learned) -> str:
    """The catalogue file's text."""
    quoted = ", ".join(f'"{name}"' for name in learned.generations)
    lines = [f"# {SOURCE}", f"band_scale = {learned.band_scale:.4f}", f"generations = [{quoted}]", "\n[factors]"]
    lines += [f"{name} = {value:.5f}" for name, value in asdict(learned.factors).items()]
    lines += ["\n[reach]", *(f"{name} = [{low}, {high}]" for name, (low, high) in learned.reach.items())]
    for kind in ("groups", "stacks"):
        for name, numbers in getattr(learned, kind).items():
            lines += [f"\n[{kind}.{name}]", *(f"{key} = {value:.5f}" for key, value in numbers.items())]
    lines += ["\n[sources]", *(f'{name} = "{text}"' for name, text in learned.sources.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_text(PATH, as_toml(calibrate(shipped_runs())))
