"""What each rank does: build the models one by one, hold their memory, and step their plans in turns."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from typing import Any

from executor.mesh import Meshes
from executor.run.batches import load_data
from executor.run.runner import Runner
from executor.run.subject import load_subject
from planner.prediction import PlanFile
from profiles.artifacts import STRICT, validate
from profiles.machines.load import load_of
from profiles.ranks.rank import Rank, join_group, report

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """Which plans are stepped how often: `turns` blocks of `steps` steps of each plan of a model in turn."""

    __pydantic_config__ = STRICT

    files: tuple[PlanFile, ...]
    turns: int
    steps: int
    trusted: tuple[str, ...]


def run(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Step the plans of every file; what was measured of each plan, by model and plan."""
    work, found = validate(payload, Work, "the work"), []
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        for index, file in enumerate(work.files):
            report(index / len(work.files), file.model_name)
            own = _run_model(work, file, rank, meshes)
            found += own
            report(index / len(work.files), file.model_name, "", {"measured": own})
            gc.collect()
    return found


def _run_model(work: Work, file: PlanFile, rank: Rank, meshes: Meshes) -> list[dict[str, Any]]:
    workload = load_subject(file, work.trusted)
    samples = load_data("", workload, file.sequence_length, SEED)
    plans = [candidate.plan for candidate in file.candidates]
    runners = [Runner(plan, workload, rank, samples, meshes) for plan in plans]
    for runner in runners:
        runner.prepare(0)
    for _ in range(work.turns):
        for runner in runners:
            runner.run_block(work.steps)
    found = []
    for runner in runners:
        account = runner.account()
        if account is None:
            continue
        load = load_of(account.counted) if work.turns else None
        found.append(
            {
                "model": file.model_name,
                "plan": runner.plan.id,
                "peak_bytes": list(account.peak_bytes),
                "seconds": list(account.step_seconds),
                "parts": account.seconds,
                "load": asdict(load) if load else {},
            }
        )
    return found
