"""What the ranks of the fault tests run: a plan in which something goes wrong on one rank at a given step."""

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import torch

import executor.run.checkpoint
from executor.mesh import Meshes
from executor.run.batches import default_text, load_text
from executor.run.checkpoint import Checkpoints
from executor.run.checkpoint_index import Writer
from executor.run.runner import Runner
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.ranks.rank import Rank, join_group
from profiles.workloads.loading import load_workload
from tests.parity_entries import SPECS
from tests.plan_builders import SEED, SEQUENCE

FAULTY_RANK, FAULTY_STEP = 1, 5
TIMEOUT_SECONDS = 3.0
ROOM_BYTES = 2**26


def run_into(payload: dict[str, Any]) -> list[float | None]:
    """Run ten steps of the plan, with the fault; losses of rank 0 where nothing comes of it."""
    plan, fault = validate(payload["plan"], Plan, "the test"), payload["fault"]
    text = load_text(default_text(), payload.get("sequence", SEQUENCE), SEED)
    checkpoints = validate(payload["checkpoints"], Checkpoints, "the test") if "checkpoints" in payload else None
    with join_group("cpu", TIMEOUT_SECONDS) as rank:
        is_faulty = rank.rank == payload.get("rank", FAULTY_RANK)
        runner = Runner(
            plan,
            load_workload(SPECS["llama"]),
            rank,
            text,
            Meshes("cpu", TIMEOUT_SECONDS),
            checkpoints,
            TIMEOUT_SECONDS,
            1e9,
        )
        if fault == "exhausted" and is_faulty:
            load_workload(SPECS["llama"]).build(0, 2, SEED)  # so that no library has to be loaded any more
            room = psutil.Process().memory_info().vms + ROOM_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
        if fault == "killed while saving":
            _break_saving(rank, payload["spared"])
        runner.prepare(0)
        runner.run_block(FAULTY_STEP - 1 - runner.num_steps_done)
        if is_faulty and fault == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if is_faulty and fault in ("hangs in a step", "hangs before a step"):
            _hang(runner, fault)
        if fault == "diverges":
            with torch.no_grad():
                next(runner.trainer.parameters()).fill_(torch.inf)
        runner.run_block(5)
        return list(runner.finish().losses)


def _hang(runner: Runner, fault: str) -> None:
    if fault == "hangs before a step":
        time.sleep(60)
    runner.trainer.loss = runner.trainer.optimizer.step = lambda *_: time.sleep(60)  # type: ignore[assignment,method-assign]
    if runner.trainer.pipeline is not None:
        runner.trainer.pipeline.schedule.step = lambda *_, **__: time.sleep(60)  # type: ignore[method-assign]


def _break_saving(rank: Rank, spared: int, victim: int = 0) -> None:
    """A rank dies in the middle of the save after those spared: it leaves half a folder under its first name."""
    real, saves = executor.run.checkpoint.dcp_save, []

    def save(state: dict[str, Any], storage_writer: Writer, **how: Any) -> None:
        saves.append(storage_writer)
        if len(saves) > spared and rank.rank == victim:
            Path(storage_writer.path, f"__{victim}_0.distcp").write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        real(state, storage_writer=storage_writer, **how)

    executor.run.checkpoint.dcp_save = save  # type: ignore[assignment]
