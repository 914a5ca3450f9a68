"""`make bench`: how fast the program itself is. Medians of repeats that take turns, with the spread and the machine.

Then held against what is recorded (tests/bench_gate.py): `--record` writes the record anew, `--quick` measures the
search alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.cost.memory.footprint import footprint
from planner.plans import Plan
from planner.published.learn import predict
from planner.schedules.replay import replay_plans
from planner.schedules.steps import Shape
from planner.simulate.step import simulate
from planner.simulate.step_work import Bucket, StageWork, StepWork, Transfer
from planner.space.question import jobs_of
from profiles.library import load_model
from profiles.machines.fingerprint import current_fingerprint
from profiles.ranks.launcher import launch
from profiles.tracing.trace import trace
from profiles.workloads.loading import load_workload
from tests.bench_gate import judge, processor_seconds, record, workload_seconds
from tests.bench_space import big_setting
from tests.pipeline_builders import random_seconds

REPEATS = 7
# Pipelines of 16 stages and 64 micro-batches.
PIPELINES = (Shape("1f1b", 16, 1, 64), Shape("interleaved-1f1b", 8, 2, 64), Shape("zbv", 8, 2, 64))
NUM_PLANS = 8192
# What is held against what, and what it is called.
LOOPS = (
    ("ours", "our loop", "by hand"),
    ("applied", "a loop around apply", "by hand"),
    ("trained", "execute --train", "by hand, logged"),
)
# By the function of tests/bench_space: names of the rate and of the memory.
SEARCHES = {
    "big": ("a million plans of 175B on 4,096 A100", "MiB of the search of 175B on 4,096 A100"),
    "measured": ("a million plans of 70B on 4,096 measured H100", "MiB of the search of 70B on 4,096 measured H100"),
}
STEP = "simulate a step of 175B on 512 GPUs"
# Global batches of the questions that are asked as commands, by the number of GPUs.
COMMANDS = {64: "512", 1024: "2048", 131072: "131072"}
GATED = (
    *(name for names in SEARCHES.values() for name in names), STEP,
    *(f"replay of {shape.schedule}" for shape in PIPELINES),
    *(f"plan, 70B on {gpus:,}" for gpus in COMMANDS),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds with their spread (interquartile range / median); median processor seconds over the workload's."""

    seconds: float
    spread: float
    ratio: float


def timings(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """The time of each action, taken in turns after one warm-up, with the workload before and after every one."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    before = workload_seconds()
    for repeat in range(repeats + 1):
        for name, action in actions.items():
            start, computed = time.perf_counter(), processor_seconds()
            action()
            seconds, computed = time.perf_counter() - start, processor_seconds() - computed
            after = workload_seconds()
            if repeat:
                taken[name].append((seconds, computed / ((before + after) / 2)))
            before = after
    result = {}
    for name, pairs in taken.items():
        low, middle, high = statistics.quantiles([seconds for seconds, _ in pairs], n=4)
        result[name] = Timing(middle, (high - low) / middle, statistics.median(ratio for _, ratio in pairs))
    return result


def command(*arguments: str) -> Callable[[], object]:
    """A whole process, start included."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def pipelines() -> dict[str, Callable[[], object]]:
    """The exact replay of pipelines, each for many random plans."""
    actions: dict[str, Callable[[], object]] = {}
    for shape in PIPELINES:
        seconds = random_seconds(shape, NUM_PLANS, 0.1, 0.1)
        actions[f"replay of {shape.schedule}"] = lambda shape=shape, s=seconds: replay_plans(shape, s)
    return actions


def step_of_175b() -> StepWork:
    """GPT-3 175B on 512 GPUs in 8 tensor x 8 pipeline x 8 data ranks: its tensors' sizes, times of about its passes."""
    tensor = Transfer(name="all_reduce", stream="tensor", span="node", num_bytes=24 * 50e6, latency_seconds=5e-4)
    message = Transfer(name="send_receive", stream="pipeline", span="network", num_bytes=6.3e6, latency_seconds=1e-5)
    bucket = Transfer(name="all_reduce", stream="data", span="network", num_bytes=9e8, latency_seconds=1e-4)
    stage = StageWork(
        forward_seconds=0.05,
        backward_seconds=0.1,
        forward_comm=tensor,
        backward_comm=tensor,
        message=message,
        buckets=tuple(Bucket(done_fraction=(layer + 1) / 12, transfer=bucket) for layer in range(12)),
    )
    return StepWork(
        shape=Shape("1f1b", 8, 1, 64),
        stages=(stage,) * 8,
        node_bytes_per_second=250e9,
        network_bytes_per_second=25e9,
        optimizer_seconds=(0.05,) * 8,
        compute_slowdown_fraction=0.1,
        communication_slowdown_fraction=0.1,
    )


def one_job() -> Callable[[], object]:
    """The same laws for a single plan: what the space is measured against."""
    at = big_setting()
    jobs = jobs_of(at, tensor=np.array([8.0]), pipeline=np.array([8.0]), data=np.array([64.0]))
    learned = load_learned()
    return lambda: (predict(ingredients_of(jobs), learned), footprint(jobs))


def space_numbers(alone_seconds: float) -> dict[str, float]:
    """Print the rates of both searches beside that of single plans; return their ratios and their memory."""
    result = {}
    for search, (rate, memory) in SEARCHES.items():
        script = f"from tests.bench_space import explore_{search}; explore_{search}()"
        command = [sys.executable, "-c", script]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)
        ]
        plans, seconds = runs[0][0], statistics.median(run[1] for run in runs)
        held = max(run[3] for run in runs) / 2**20
        print(
            f"{rate.removeprefix('a million plans of ')}: {plans:,} plans in {seconds:.1f} s, "
            f"{plans / seconds:,.0f} plans/s, {held:,.0f} MiB resident; {plans / seconds * alone_seconds:,.0f} x the "
            "rate of one plan at a time"
        )
        result |= {rate: statistics.median(run[2] for run in runs) / plans * 1e6, memory: held}
    return result


def training_numbers() -> dict[str, float]:
    """Print our training loop against loops written by hand, of the same model and in turns, on two pinned ranks.

    Return our seconds over theirs.
    """
    result = {}
    for name, plan in {
        "DDP": Plan(data_parallel=2, micro_batch_size=4),
        "FSDP2": Plan(data_parallel=2, micro_batch_size=4, zero_stage=3),
    }.items():
        found = launch("tests.bench_entries:against_by_hand", asdict(plan), 2, "cpu")
        step = statistics.median(found["ours"])
        print(f"{name}: {step * 1e3:.0f} ms a step, of which our marks take {found['marks'][0] / step:.4%}")
        for ours, what, hand in LOOPS:
            pairs = [own / other for own, other in zip(found[ours], found[hand], strict=True)]
            low, middle, high = statistics.quantiles(pairs, n=4)
            result[f"{what} over {name} by hand"] = middle
            print(
                f"{what} against {name} {hand}: {1 / middle:.3f} of its throughput (quartiles {1 / high:.3f} to "
                f"{1 / low:.3f})"
            )
    return result


def program_numbers(repeats: int) -> dict[str, float]:
    """Print how long the program's parts and commands take; return each over the workload."""
    step = step_of_175b()
    plan = ("-m", "planner", "--model", "llama-3.1-8b", "--device", "h100-sxm")
    large = ("-m", "planner", "--model", "llama-3.1-70b", "--device", "h100-sxm")
    timed = timings(
        {
            "python, empty program": command("-c", "pass"),
            "plan --help": command("-m", "planner", "--help"),
            "plan, 8B on 64": command(*plan, "--gpus", "64"),
            **{
                f"plan, 70B on {gpus:,}": command(*large, "--gpus", str(gpus), "--global-batch", batch)
                for gpus, batch in COMMANDS.items()
            },
            "price one plan as a job": one_job(),
            # Not one that is kept from before.
            "trace an 8B model, two precisions": lambda: trace(load_workload(load_model("llama-3.1-8b").workload)),
            STEP: lambda: simulate(step),
            **pipelines(),
        },
        repeats,
    )
    for name, own in timed.items():
        print(f"{name:40s} {own.seconds * 1e3:10.1f} ms  spread {own.spread:5.0%}")
    for name in pipelines():
        print(f"{name:40s} {NUM_PLANS / timed[name].seconds:10,.0f} plans/s of 16 stages x 64 micro-batches")
    return {name: own.ratio for name, own in timed.items()}


def main() -> int:
    """Print the tables; return 1 where something is worse than recorded by too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the numbers that later runs are held against")
    parser.add_argument("--quick", action="store_true", help="measure the search alone")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="how often each is timed, at least twice")
    asked = parser.parse_args()
    if asked.record and asked.quick:
        parser.error("--quick measures a part, and a record has all")
    here = current_fingerprint("cpu")
    machine = f"{here.device}, {here.num_cores} cores, Python {here.python}, torch {here.torch}"
    print(f"{machine}; {asked.repeats} repeats in turns")
    numbers = {} if asked.quick else program_numbers(asked.repeats) | training_numbers()
    numbers |= space_numbers(timings({"one": one_job()}, asked.repeats)["one"].seconds)
    if asked.record:
        record(numbers, machine)
        return 0
    return judge(numbers, GATED, is_part=asked.quick)


if __name__ == "__main__":
    sys.exit(main())
