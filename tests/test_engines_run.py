"""Engines that are installed train as one device does: ten steps, each plan in turns with this program's."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from executor.run.measurement import RunFile
from planner.plans import Plan
from profiles import artifacts
from tests.plan_builders import write_plan_file

DATA = Plan(data_parallel=2, micro_batch_size=2, num_microbatches=2)
PIPELINE = Plan(pipeline_parallel=2, micro_batch_size=2, num_microbatches=4, schedule="1f1b", stage_bounds=(0, 2))
PLANS = {
    "deepspeed": [*(replace(DATA, zero_stage=stage) for stage in range(4)), PIPELINE, replace(DATA, precision="bf16")],
    "horovod": [DATA, replace(DATA, micro_batch_size=4, num_microbatches=1, recompute="full")],
}
NUM_LOSSES = 10


def run_by(name: str, folder: Path, plans: list[Plan], *arguments: str, steps: int = 7) -> RunFile:
    """Run plans by an engine and this program in turns; the run file."""
    path = write_plan_file(folder / "plan.json", *plans, sequence=64)
    output = folder / "run.json"
    words = [str(path), "--engine", name, "--top", str(len(plans)), "--steps", str(steps), "-o", str(output)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "executor", *words, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return artifacts.read(output, "run", RunFile)


@pytest.mark.gloo
@pytest.mark.parametrize("name", ["deepspeed", "horovod"])
def test_an_engine_trains_as_one_device_does(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: make stacks")
    run = run_by(name, tmp_path, PLANS[name], "--engine", "trainwright")
    assert [one.engine for one in run.runs] == [name, "trainwright"] * len(PLANS[name])
    for one in run.runs:
        check = one.measurement.loss_check
        assert check.status == "passed", (one.plan.id, check.reason)
        if one.engine == name:
            assert one.engine_version
            assert len(check.reference_losses) == NUM_LOSSES
            assert check.largest_difference_fraction is not None
            assert check.largest_difference_fraction < (1e-4 if one.plan.precision == "fp32" else 2e-3)
            assert check.largest_norm_difference_fraction is not None
            assert check.largest_norm_difference_fraction < (1e-4 if one.plan.precision == "fp32" else 2e-2)
    assert json.loads((tmp_path / "run.json").read_text())["runs"][0]["engine"] == name
