"""`make numbers`: many kinds of plans predicted and run in turns on this machine, profiled just before.

Prints the error of step times and of peak memory, the rank correlation, and how the plan ranked first compares with the
fastest: of plans in data, tensor and pipeline parallel with every codec, and of every other choice that the executor
has, the best plan with it. Takes about a quarter of an hour; what it writes stays in a folder given as its argument.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.stats import spearmanr

from executor.run.measurement import PlanRun, RunFile
from planner.plans import Plan
from planner.prediction import Candidate
from planner.space.answers import why_not_run
from planner.space.explore import Place, Space, explore
from planner.space.files import plan_file, planned_for
from planner.space.layouts import Options
from planner.space.measured_setting import measured_setting
from planner.space.predictions import predictions
from planner.space.to_plans import plan_of
from profiles import artifacts
from profiles.library import load_model
from profiles.machines.profile import MachineProfile

MODEL, BATCH, SEQUENCE = "llama-26m", 8, 64
PRECISIONS = ("fp32", "bf16")
CODECS = ("none", "bf16", "fp16", "int8", "fp8", "topk-1", "powersgd-1", "powersgd-4")
NUM_PLANS, STEPS, SEED = 30, 12, 0
EXPERTS = {
    "model_type": "mixtral", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "vocab_size": 1024, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
OPTIONS = Options(offload=("none",), vocab_parallel=(0, 1))
# What a plan is that has one of the choices beside those, by the choice's name.
CHOICES: dict[str, Callable[[Plan], bool]] = {
    "interleaved": lambda plan: plan.schedule == "interleaved-1f1b",
    "zero bubble": lambda plan: plan.schedule == "interleaved-zb",
    "ZBV": lambda plan: plan.schedule == "zbv",
    "DualPipeV": lambda plan: plan.schedule == "dualpipev",
    "context": lambda plan: plan.context_parallel == 2 and not plan.zero_stage,
    "context, ZeRO 3": lambda plan: plan.context_parallel == 2 and plan.zero_stage == 3,
    "sequence": lambda plan: plan.sequence_parallel and not plan.vocab_parallel,
    "vocabulary": lambda plan: plan.vocab_parallel and not plan.sequence_parallel,
    "sequence and vocabulary": lambda plan: plan.vocab_parallel and plan.sequence_parallel,
    "selective recomputation": lambda plan: plan.recompute == "selective" and plan.data_parallel == 2,
    "partial recomputation": lambda plan: sum(plan.recompute_layers) >= 2 and plan.data_parallel == 2,
    "partial recomputation, pipeline": lambda plan: sum(plan.recompute_layers) >= 2 and plan.pipeline_parallel == 2,
}
OF_EXPERTS: dict[str, Callable[[Plan], bool]] = {
    "experts": lambda plan: plan.expert_parallel == 2,
    "whole experts": lambda plan: plan.data_parallel == 2 and plan.expert_parallel == 1 and not plan.zero_stage,
}
# Of four ranks on the cores there are: run, and not judged.
OF_FOUR: dict[str, Callable[[Plan], bool]] = {
    "HSDP": lambda plan: plan.shard_degree == 2,
    "ZeRO 2 under a pipeline": lambda plan: plan.zero_stage == 2 and plan.pipeline_parallel == 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A plan of a space, which can be run."""

    space: Space
    place: Place
    plan: Plan
    seconds: float


def command(*arguments: str) -> None:
    """Run one of the commands."""
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def runnable(space: Space) -> Iterator[Found]:
    """The best plan of each layout and schedule, and one at random beside it, of those that can be run."""
    draw = random.Random(SEED)
    best = space.best
    for row in range(len(best)):
        own = Place(*(int(column[row]) for column in (best.layout, best.micro_batch, best.schedule, best.recompute)))
        choices = space.choices(own.layout)
        micro = draw.randrange(len(choices.micro_batch))
        other = replace(own, micro_batch=micro, recompute=draw.randrange(len(choices.share)))
        for place in (own, other) if choices.legal[micro, own.schedule, other.recompute] else (own,):
            plan = plan_of(space, place)
            if not why_not_run(space.at, plan):
                yield Found(space=space, place=place, plan=plan, seconds=float(best.step_seconds[row]))


def is_usual(plan: Plan) -> bool:
    """Whether a plan has none of the other choices."""
    return not any(has(plan) for has in CHOICES.values()) and plan.context_parallel == 1


def best_with(found: Sequence[Found], choices: dict[str, Callable[[Plan], bool]]) -> list[Found]:
    """Of each choice the fastest plan that has it."""
    result = {}
    for has in choices.values():
        own = sorted((one for one in found if has(one.plan)), key=lambda one: one.seconds)
        if own:
            result[own[0].plan] = own[0]
    return list(result.values())


def variety(found: Sequence[Found]) -> list[Found]:
    """The best of every layout of usual choices, and others at random."""
    usual = {one.plan: one for one in found if is_usual(one.plan)}
    layouts: dict[tuple[object, ...], Found] = {}
    for one in sorted(usual.values(), key=lambda one: one.seconds):
        plan = one.plan
        key = (plan.precision, plan.codec, plan.data_parallel, plan.tensor_parallel, plan.zero_stage, plan.schedule)
        layouts.setdefault(key, one)
    chosen = sorted(layouts.values(), key=lambda one: one.seconds)[:NUM_PLANS]
    rest = [one for plan, one in usual.items() if plan not in {other.plan for other in chosen}]
    return chosen + random.Random(SEED).sample(rest, max(0, min(NUM_PLANS - len(chosen), len(rest))))


def candidates(found: Sequence[Found]) -> list[Candidate]:
    """The plans with what they would take, fastest first."""
    made = [
        Candidate(rank=0, plan=one.plan, prediction=predictions(one.space, [one.place])[0], verdict="", executable=True)
        for one in found
    ]
    ordered = sorted(made, key=lambda one: one.prediction.step_seconds)
    return [replace(one, rank=rank + 1) for rank, one in enumerate(ordered)]


def spaces(
    machine: MachineProfile, model: str, ranks: int, precisions: Sequence[str], codecs: Sequence[str]
) -> list[Space]:
    """A space of every precision and codec."""
    profile = load_model(model, precisions)
    return [
        explore(measured_setting(machine, profile, ranks, BATCH, SEQUENCE, precision, codec=codec), OPTIONS)
        for precision in precisions
        for codec in codecs
    ]


def run(folder: Path, name: str, found: Sequence[Found], *options: str) -> tuple[PlanRun, ...]:
    """Run the plans in turns."""
    plan, result = (folder / f"numbers-{name}-{kind}.json" for kind in ("plan", "run"))
    ranked = candidates(found)
    at = found[0].space.at
    artifacts.write(plan, "plan", plan_file(planned_for(at), ranked, num_legal=len(ranked), rejected={}, notes=()))
    command("executor", str(plan), "--top", str(len(ranked)), "--steps", str(STEPS), "-o", str(result), *options)
    return artifacts.read(result, "run", RunFile).runs


def spread(own: PlanRun) -> float:
    """Half the distance between the quartiles of a plan's steps over their median."""
    low, middle, high = statistics.quantiles(own.measurement.step_seconds, n=4)
    return (high - low) / 2 / middle


def show(title: str, runs: Sequence[PlanRun]) -> None:
    """Print what was asked."""
    seconds = [statistics.median(own.measurement.step_seconds) for own in runs]
    predicted = [own.prediction.step_seconds for own in runs]
    errors = [own / real - 1 for own, real in zip(predicted, seconds, strict=True)]
    memory = [own.prediction.peak_bytes / max(own.measurement.peak_bytes) - 1 for own in runs]
    print(f"\n{title}")
    for own, real, error, held in sorted(zip(runs, seconds, errors, memory, strict=True), key=lambda row: row[1]):
        loss = own.measurement.loss_check.status
        print(f"{own.plan.id:55s} {real * 1e3:8.0f} ms ±{spread(own):.0%}  {error:+7.1%}  memory {held:+6.1%}  {loss}")
    if len(runs) < 3:
        return
    within = [abs(error) <= max(0.08, spread(own)) for error, own in zip(errors, runs, strict=True)]
    order = sorted(range(len(runs)), key=predicted.__getitem__)
    best_of_three = min(seconds[i] for i in order[:3])
    print(
        f"{len(runs)} plans: median |error| {statistics.median(map(abs, errors)):.1%}, worst "
        f"{max(map(abs, errors)):.1%}, {statistics.mean(within):.0%} within 8 % or their spread; Spearman "
        f"{spearmanr(predicted, seconds).statistic:.3f}; "
        f"first {seconds[order[0]] / min(seconds) - 1:.1%} behind the fastest, best of the first three "
        f"{best_of_three / min(seconds) - 1:.1%}; peak memory median {statistics.median(map(abs, memory)):.1%}, worst "
        f"{max(map(abs, memory)):.1%}"
    )


def main() -> None:
    """Profile, plan, run, print."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    folder.mkdir(exist_ok=True)
    machine, experts = folder / "numbers-machine.json", folder / "mixture.json"
    experts.write_text(json.dumps(EXPERTS), encoding="utf-8")
    models = ("--model", MODEL, "--model", str(experts))
    if not machine.exists():
        command(
            "profiles", "machine", "--gpus", "2", *models, "--sequence-length", str(SEQUENCE), "--precision",
            ",".join(PRECISIONS), "-o", str(machine),
        )  # fmt: skip
    profile = artifacts.read(machine, "machine-profile", MachineProfile)
    usual = [one for space in spaces(profile, MODEL, 2, PRECISIONS, CODECS) for one in runnable(space)]
    plain = [one for space in spaces(profile, MODEL, 2, ("fp32",), ("none",)) for one in runnable(space)]
    routed = [one for space in spaces(profile, str(experts), 2, ("fp32",), ("none",)) for one in runnable(space)]
    four = [one for space in spaces(profile, MODEL, 4, ("fp32",), ("none",)) for one in runnable(space)]
    as_before = run(folder, "usual", variety(usual))
    others = (*run(folder, "other", best_with(plain, CHOICES)), *run(folder, "experts", best_with(routed, OF_EXPERTS)))
    beyond = run(folder, "four", best_with(four, OF_FOUR), "--oversubscribe")
    show("data, tensor and pipeline parallel, every codec, ZeRO and recomputation", as_before)
    show("the other choices, the best plan with each", others)
    show("four ranks on two cores, not judged", beyond)
    losses = {own.measurement.loss_check.status for own in (*as_before, *others, *beyond)}
    print(f"\nlosses: {', '.join(sorted(losses))}")


if __name__ == "__main__":
    main()
