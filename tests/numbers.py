"""`make numbers`: many kinds of plans predicted and run in turns on this machine, profiled just before.

Prints the error of step times and of peak memory, the rank correlation, and how the plan ranked first compares with the
fastest. Takes about ten minutes; what it writes stays in a folder given as its argument.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from scipy.stats import spearmanr

from executor.run.measurement import PlanRun, RunFile
from planner.measured.ask import plan_file
from planner.measured.explain import candidates, plan_of, predict
from planner.measured.search import Choices, Search, search
from planner.prediction import Candidate
from profiles import artifacts
from profiles.library import load_model
from profiles.machines.profile import MachineProfile

MODEL, RANKS, BATCH, SEQUENCE = "llama-26m", 2, 8, 64
PRECISIONS = ("fp32", "bf16")
CODECS = ("none", "bf16", "fp16", "int8", "fp8", "topk-1", "powersgd-1", "powersgd-4")
NUM_PLANS, STEPS, SEED = 36, 12, 0


def command(*arguments: str) -> None:
    """Run one of the commands."""
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def variety(found: Search) -> list[Candidate]:
    """The best of every layout, and others at random: micro-batches and recomputation that are not the best."""
    chosen, _ = candidates(found, NUM_PLANS)
    own = {candidate.plan.id for candidate in chosen}
    rows = [(priced, row) for priced in found.priced for row in range(len(priced.table)) if priced.fits[row]]
    rows = [(priced, row) for priced, row in rows if plan_of(priced, row).id not in own]
    for priced, row in random.Random(SEED).sample(rows, max(0, min(NUM_PLANS - len(chosen), len(rows)))):
        plan = plan_of(priced, row)
        chosen += (Candidate(rank=0, plan=plan, prediction=predict(found, priced, row), verdict="", executable=True),)
    return sorted(chosen, key=lambda candidate: candidate.prediction.step_seconds)


def spread(run: PlanRun) -> float:
    """Half the distance between the quartiles of a plan's steps over their median."""
    low, middle, high = statistics.quantiles(run.measurement.step_seconds, n=4)
    return (high - low) / 2 / middle


def show(runs: tuple[PlanRun, ...]) -> None:
    """Print what was asked."""
    seconds = [statistics.median(run.measurement.step_seconds) for run in runs]
    predicted = [run.prediction.step_seconds for run in runs]
    errors = [own / real - 1 for own, real in zip(predicted, seconds, strict=True)]
    within = [abs(error) <= max(0.08, spread(run)) for error, run in zip(errors, runs, strict=True)]
    memory = [run.prediction.peak_bytes / max(run.measurement.peak_bytes) - 1 for run in runs]
    first = min(range(len(runs)), key=predicted.__getitem__)
    best_of_three = min(seconds[i] for i in sorted(range(len(runs)), key=predicted.__getitem__)[:3])
    for run, real, error in sorted(zip(runs, seconds, errors, strict=True), key=lambda row: row[1]):
        print(f"{run.plan.id:45s} {real * 1e3:8.0f} ms ±{spread(run):.0%}  {error:+7.1%}")
    print(
        f"{len(runs)} plans: median |error| {statistics.median(map(abs, errors)):.1%}, worst "
        f"{max(map(abs, errors)):.1%}, {statistics.mean(within):.0%} within 8 % or their spread; Spearman "
        f"{spearmanr(predicted, seconds).statistic:.3f}; "
        f"first {seconds[first] / min(seconds) - 1:.1%} behind the fastest, best of the first three "
        f"{best_of_three / min(seconds) - 1:.1%}; peak memory median {statistics.median(map(abs, memory)):.1%}, worst "
        f"{max(map(abs, memory)):.1%}"
    )


def main() -> None:
    """Profile, plan, run, print."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    machine, plan, run = (folder / f"numbers-{name}.json" for name in ("machine", "plan", "run"))
    sizes = ("--gpus", str(RANKS), "--model", MODEL, "--sequence-length", str(SEQUENCE))
    command("profiles", "machine", *sizes, "--precision", ",".join(PRECISIONS), "-o", str(machine))
    found = search(
        artifacts.read(machine, "machine-profile", MachineProfile),
        load_model(MODEL),
        Choices(
            num_devices=RANKS, global_batch_size=BATCH, sequence_length=SEQUENCE, precisions=PRECISIONS, codecs=CODECS
        ),
    )
    file = plan_file(found, NUM_PLANS, ())
    ranked = tuple(replace(one, rank=rank + 1) for rank, one in enumerate(variety(found)))
    artifacts.write(plan, "plan", replace(file, candidates=ranked, baseline=-1))
    command("executor", str(plan), "--top", str(len(ranked)), "--steps", str(STEPS), "-o", str(run))
    show(artifacts.read(run, "run", RunFile).runs)


if __name__ == "__main__":
    main()
