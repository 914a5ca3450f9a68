"""A program for Ray Train as Ray runs it, on two workers of this machine: `python -m tests.stacks.ray_runs`.

Ray is asked of RAY_PYTHON, or of this Python where that is not set; that Python has this program too, by its folder.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from executor.emit import JobOptions, emit
from executor.run.measurement import RunFile
from planner.plans import Plan
from profiles import artifacts
from tests.plan_builders import LLAMA, make_plan_file, write_plan_file

SOURCE = Path(__file__).parent.parent.parent
PLANS = (Plan(data_parallel=2, micro_batch_size=2), Plan(data_parallel=2, zero_stage=3, micro_batch_size=2))
STEPS = 4


def python() -> str:
    return os.environ.get("RAY_PYTHON", sys.executable)


def missing() -> str:
    """What is needed and is not here; "" where all is."""
    done = subprocess.run([python(), "-P", "-c", "import ray.train.torch"], capture_output=True, check=False)
    return "ray is not installed" if done.returncode else ""


def ran(plan: Plan, folder: Path) -> str:
    """What is wrong with a plan's run, "" where it took all its steps."""
    write_plan_file(folder / "plan.json", plan, spec=LLAMA)
    file = make_plan_file(plan, spec=LLAMA)
    words = ("--steps", str(STEPS), "-o", "run.json")
    program = folder / "job.py"
    program.write_text(emit("ray", file, file.candidates[0], "plan.json", JobOptions(arguments=words)))
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    done = subprocess.run(
        [python(), "-W", "ignore", str(program)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"{plan.id}: " + " ".join((done.stdout + done.stderr).split()[-150:])
    (run,) = artifacts.read(folder / "run.json", "run", RunFile).runs
    measured = run.measurement
    is_whole = run.plan == plan and len(measured.step_seconds) == STEPS and measured.loss_check.status == "passed"
    return "" if is_whole else f"{plan.id}: its run file has {len(measured.step_seconds)} steps, or other losses"


def main() -> int:
    if why := missing():
        print(f"ray: {why}")
        return 0
    wrong = []
    for plan in PLANS:
        with tempfile.TemporaryDirectory() as folder:
            wrong += [said] if (said := ran(plan, Path(folder))) else []
    print(f"ray: {len(PLANS) - len(wrong)} of {len(PLANS)} accepted {wrong[0] if wrong else ''}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
