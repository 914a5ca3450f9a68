"""How many of the published runs that predictions learned from resemble a question, trait by trait."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost.error_bands import features
from planner.cost.hardware import generations
from planner.cost.job import Jobs
from planner.published.calibrate import RUNS
from planner.published.reading import read_jobs
from profiles.models.transformer import Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """How many runs are like a job in one trait: `name` says which, `value` what the job has."""

    name: str
    value: str
    num_runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resembling:
    """Of `num_runs` measured steps of others how many are like a job in each trait.

    `num_alike` are of its generation of devices, precision and axes; `num_in_software` of those in its software too.
    """

    num_runs: int
    num_alike: int
    num_in_software: int
    traits: tuple[Trait, ...]


def resembling(job: Jobs) -> Resembling:
    """The published runs that resemble `job`, a single one; traits are compared as bands of errors compare them."""
    with RUNS.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["step_time_s"]]
    runs = read_jobs(rows).jobs
    known, own = features(runs), features(job)
    shares = [
        ("generation of devices", str(generations(job)[0]), generations(runs) == generations(job)[0]),
        ("precision on this generation", str(own["products"][0]), known["products"] == own["products"][0]),
        ("axes that are split", _axes(job)[0], np.array(_axes(runs)) == _axes(job)[0]),
        ("software", str(own["stack"][0]), known["stack"] == own["stack"][0]),
        ("ZeRO stage", f"{job.zero_stage[0]:g}", runs.zero_stage == job.zero_stage[0]),
        ("recomputation", str(own["recompute"][0]), known["recompute"] == own["recompute"][0]),
        ("at least as many devices", f"{job.num_devices[0]:g}", runs.num_devices >= job.num_devices[0]),
        ("at least as long sequences", f"{job.sequence[0]:g}", runs.sequence >= job.sequence[0]),
    ]
    alike: Flags = np.all([flags for _, _, flags in shares[:3]], axis=0)
    traits = tuple(Trait(name=name, value=value, num_runs=int(np.sum(flags))) for name, value, flags in shares)
    return Resembling(
        num_runs=len(runs),
        num_alike=int(np.sum(alike)),
        num_in_software=int(np.sum(alike & (known["stack"] == own["stack"][0]))),
        traits=traits,
    )


def _axes(jobs: Jobs) -> Sequence[str]:
    """The axes of each job that have several ranks, in words."""
    degrees = {
        "data": jobs.data, "tensor": jobs.tensor, "context": jobs.context, "expert": jobs.expert,
        "pipeline": jobs.pipeline,
    }  # fmt: skip
    words = [[name for name, degree in degrees.items() if degree[row] > 1] for row in range(len(jobs))]
    return [", ".join(own) or "none" for own in words]
