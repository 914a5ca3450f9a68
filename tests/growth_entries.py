"""What the ranks of the growth test do: many steps of a small model, measured and logged or not, in turns."""

import gc
import time
from typing import Any
from unittest.mock import patch

import psutil
import torch.distributed as dist

from executor.mesh import Meshes
from executor.observe.events import StepTrace
from executor.observe.recorder import Recorder
from executor.run.batches import default_text, load_text
from executor.run.log_values import log_line, log_values
from executor.run.runner import Runner
from executor.run.session import BLOCK_STEPS
from planner.plans import Plan
from planner.prediction import PlanFile
from profiles.artifacts import validate
from profiles.ranks.rank import join_group, report
from profiles.workloads.loading import load_workload

SEED = 0
# A library's first steps are not its last: what grows is counted from here on.
WARMUP_SHARE = 0.2


NOTHING = StepTrace(start_seconds=0.0, stop_seconds=0.0, actions=(), ready_seconds=None)
# In place of a recorder's methods, to see what it takes to note anything.
DEAF: dict[str, Any] = {
    "now": lambda _: 0.0,
    "begin": lambda _: None,
    "note": lambda *_, **__: None,
    "extend": lambda *_: None,
    "bucket_ready": lambda _: 0.0,
    "finish": lambda _: NOTHING,
}


def run(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Step the file's plan as `execute` does, and where asked as often without measuring; what it took, by rank."""
    file = validate(payload["file"], PlanFile, "the test")
    (candidate,) = file.candidates
    with join_group("cpu") as rank:
        text = load_text(default_text(), file.sequence_length, SEED)
        runner = Runner(candidate.plan, load_workload(file.workload), rank, text, Meshes("cpu"))
        runner.prepare(3)
        memory, measured, bare = [], [], []
        for _ in range(payload["num_steps"] // BLOCK_STEPS):
            start = _clocks()
            runner.run_block(BLOCK_STEPS)
            values = log_values(
                file, runner.plan, candidate.prediction, sum(runner.steps.seconds[-BLOCK_STEPS:]) / BLOCK_STEPS,
                step=runner.num_steps_done, loss=runner.latest_loss(), memory_bytes=runner.peak_bytes,
            )  # fmt: skip
            report(0.5, runner.plan.id, log_line(values), values)
            measured.append(_since(start))
            memory.append(psutil.Process().memory_info().rss)
            if payload["in_turns"]:
                bare.append(_bare_block(runner, candidate.plan))
        found = runner.account()
        own = {"memory": memory, "measured": measured, "bare": bare, "kept": len(runner.steps)}
        everyone: list[Any] = [None] * rank.num_ranks
        dist.all_gather_object(everyone, own)
        assert found is None or len(found.step_seconds) == payload["num_steps"]
    return everyone


def _bare_block(runner: Runner, plan: Plan) -> tuple[float, float]:
    """Seconds of as many steps with nothing noted, told or waited for."""
    gc.collect(1)
    gc.disable()
    with patch.multiple(Recorder, **DEAF):
        start = _clocks()
        for step in range(BLOCK_STEPS):
            batch = runner.samples.batch(runner.num_steps_done + step, plan.global_batch_size)
            runner.trainer.step(*batch)
        seconds = _since(start)
    gc.enable()
    return seconds


def _clocks() -> tuple[float, float]:
    """Time as it goes by, and what this process has had of the cores."""
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    now = _clocks()
    return now[0] - start[0], now[1] - start[1]


def grown_bytes(memory: list[int]) -> int:
    """How much more a process holds at the end than after its warm-up."""
    return memory[-1] - memory[int(len(memory) * WARMUP_SHARE)]
