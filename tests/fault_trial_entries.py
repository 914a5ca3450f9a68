"""What the ranks of the fault trials run: a small training with checkpoints, in which something is done to one of them.

As a module it is a command: `python -m tests.fault_trial_entries payload.json`, alone or as a rank of torchrun.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

import executor.run.checkpoint
from executor.mesh import Meshes
from executor.run.batches import default_text, load_text
from executor.run.checkpoint import Checkpoints
from executor.run.checkpoint_index import Writer
from executor.run.faults import STOP
from executor.run.going_on import begun, end_step
from executor.run.known_losses import KnownLosses
from executor.run.runner import Runner
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.errors import TrainwrightError
from profiles.ranks.launcher import launch
from profiles.ranks.rank import join_group
from profiles.ranks.stores import num_restarts
from profiles.workloads.loading import load_workload
from tests.fault_entries import _break_saving
from tests.parity_entries import SPECS
from tests.plan_builders import SEED, SEQUENCE

SLOW_SAVE_SECONDS = 4.0


def train(payload: dict[str, Any]) -> dict[str, Any]:
    """Train to the end that the payload says; losses of all steps, as far as they are known."""
    plan = validate(payload["plan"], Plan, "the trial")
    with join_group("cpu", payload["timeout"]) as rank:
        Path(payload["place"], f"rank-{num_restarts()}-{rank.rank}").write_text(str(os.getpid()))
        STOP.listen()
        asked = validate(payload["checkpoints"], Checkpoints, "the trial")
        checkpoints = begun(asked, end_step(plan, 0, payload["steps"]))
        fault = payload.get("fault", "") if not num_restarts() else ""
        if fault == "killed in a save":
            _break_saving(rank, payload["spared"], payload["rank"])
        if fault == "slow saves":
            _slow_saves()
        if fault == "exhausts memory" and rank.rank == payload["rank"]:
            kept = [bytearray(os.urandom(2**20) * 16) for _ in range(2**12)]
            raise AssertionError(f"{len(kept)} blocks were there")
        text, workload = load_text(default_text(), SEQUENCE, SEED), load_workload(SPECS["llama"])
        meshes = Meshes("cpu", payload["timeout"])
        runner = Runner(plan, workload, rank, text, meshes, checkpoints, payload["timeout"], 1e9)
        runner.prepare(0, payload["steps"])
        for number in range(runner.num_timed_steps):
            time.sleep(payload["pause"])
            if fault == "diverges" and number == payload["spared"]:
                with torch.no_grad():
                    next(runner.trainer.parameters()).fill_(torch.inf)
            runner.run_block(1)
        known = KnownLosses(runner.losses_before).with_those_of(runner.losses, runner.trainer.place)
        runner.finish()
    return {**known, "first_step": runner.first_step}


def _slow_saves() -> None:
    """Saves from the second on take seconds, in which something may happen."""
    real, saves = executor.run.checkpoint.dcp_save, []

    def save(state: dict[str, Any], storage_writer: Writer, **how: Any) -> None:
        saves.append(storage_writer)
        real(state, storage_writer=storage_writer, **how)
        if len(saves) > 1:
            time.sleep(SLOW_SAVE_SECONDS)

    executor.run.checkpoint.dcp_save = save  # type: ignore[assignment]


def run_plans(payload: dict[str, Any]) -> int:
    """Run many plans one after the other in one process, two steps each; how many came to their end."""
    workload, text = load_workload(SPECS["llama"]), load_text(default_text(), SEQUENCE, SEED)
    with join_group("cpu", 120.0) as rank:
        meshes = Meshes("cpu", 120.0)
        for fields in payload["plans"]:
            runner = Runner(validate(fields, Plan, "the trial"), workload, rank, text, meshes, None, 120.0, 1e9)
            runner.prepare(0)
            runner.run_block(1)
            runner.finish()
    return len(payload["plans"])


def main() -> None:
    """Run one payload from a file; what came of it goes to the file beside it."""
    path = Path(sys.argv[1])
    payload = json.loads(path.read_text())
    try:
        result = launch("tests.fault_trial_entries:train", payload, payload["ranks"], "cpu")
    except TrainwrightError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # As the commands do; what is left of a broken group would wait.
        os._exit(error.exit_code)
    if result is not None:
        path.with_suffix(".result").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
