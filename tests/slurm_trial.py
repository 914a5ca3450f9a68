"""Emitted jobs in a real Slurm of two nodes: measured, a node killed, queued again, resumed; stopped, and going on.

`python -m tests.slurm_trial [NAME...]` prints a table and exits with 1 where anything failed; where Slurm is not
installed it says so and exits with 0. Five minutes; `whole`, which is asked for by its name, measures the machine too.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from executor.command import app
from executor.run.measurement import RunFile
from planner.plans import Plan
from profiles import artifacts
from tests.plan_builders import write_plan_file
from tests.slurm_cluster import Cluster, cluster, missing

SOURCE = Path(__file__).parent.parent
PLAN = Plan(data_parallel=2, micro_batch_size=4)
# Enough to kill something in the midst of.
STEPS, EVERY = 600, 50
TOLERANCE = 1e-6


class Trial:
    """One cluster, and the losses of a job that nothing disturbed."""

    def __init__(self, slurm: Cluster, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        self.wanted: list[float] = []

    def submit(self, name: str, *words: str, kind: str = "slurm", steps: int = STEPS, **variables: str) -> str:
        """Emit and submit a job in a folder of its own; its number."""
        own = self.folder / name
        own.mkdir()
        write_plan_file(own / "plan.json", PLAN, sequence=64)
        settings = ["--gpus-per-node", "1", "--sbatch", "time=00:30:00", "--steps", str(steps), "--timeout", "60"]
        arguments = [str(own / "plan.json"), "--emit", kind, *settings, *words, "-o", str(own / "job.sbatch")]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.exception
        paths = {"PYTHONPATH": str(SOURCE), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        told = self.slurm.called("sbatch", "job.sbatch", cwd=own, **paths, **variables)
        match = re.search(r"\d+$", told)
        assert match, f"sbatch said {told!r}"
        return match.group()

    def state(self, job: str) -> str:
        told = self.slurm.called("scontrol", "show", "job", job, "--oneliner")
        match = re.search(r"JobState=(\S+)", told)
        return match.group(1) if match else ""

    def restarts(self, job: str) -> int:
        match = re.search(r"Restarts=(\d+)", self.slurm.called("scontrol", "show", "job", job, "--oneliner"))
        return int(match.group(1)) if match else 0

    def log(self, name: str) -> str:
        return "".join(log.read_text(errors="replace") for log in (self.folder / name).glob("*.log"))

    def finished(self, job: str, name: str, seconds: float = 240) -> str:
        """Wait until a job has ended; its state."""
        ends = ("COMPLETED", "FAILED", "NODE_FAIL", "CANCELLED", "TIMEOUT")
        try:
            self.slurm.wait(lambda: self.state(job) in ends, seconds, f"the end of {name}")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log(name)[-1500:]}") from error
        return self.state(job)

    def losses(self, name: str) -> list[float]:
        run = artifacts.read(self.folder / name / "run.json", "run", RunFile).runs[0].measurement
        assert run.loss_check.status in ("passed", "skipped"), run.loss_check.reason
        return [*run.losses_before, *run.losses]

    def checkpoint_of(self, job: str, name: str, step: int) -> None:
        """Wait until a job has saved a step."""
        saved = self.folder / name / "saved"
        at_least = lambda: any(int(path.name.split("-")[1]) >= step for path in saved.glob("step-*[0-9]"))  # noqa: E731
        try:
            self.slurm.wait(at_least, 120, f"step {step} of {name}")
        except TimeoutError as error:
            raise AssertionError(f"{self.state(job)} {error}\n{self.log(name)[-1500:]}") from error

    def same(self, name: str) -> str:
        """Compare a job's losses with those of the one that nothing disturbed."""
        found = self.losses(name)
        assert len(found) == len(self.wanted), f"{len(found)} losses, not {len(self.wanted)}"
        worst = max(abs(one / other - 1) for one, other in zip(found, self.wanted, strict=True))
        assert worst < TOLERANCE, f"losses differ by {worst:.1e}"
        return f"{len(found)} losses, off by {worst:.0e} at most"


def undisturbed(trial: Trial) -> str:
    """A job on two nodes is measured; its preflight says what it found."""
    start = time.monotonic()
    job = trial.submit("undisturbed")
    assert trial.finished(job, "undisturbed") == "COMPLETED", trial.log("undisturbed")[-1500:]
    trial.wanted = trial.losses("undisturbed")
    (said,) = re.findall(r"preflight: .*", trial.log("undisturbed"))
    return f"{len(trial.wanted)} steps in {time.monotonic() - start:.0f} s; {said}"


def killed(trial: Trial) -> str:
    """A node dies in the midst; the job is queued again, and goes on from its checkpoint."""
    words = ("--checkpoint", "saved", "--checkpoint-every", str(EVERY), "--max-restarts", "2")
    job = trial.submit("killed", *words)
    trial.checkpoint_of(job, "killed", 2 * EVERY)
    trial.slurm.kill_node("n1")
    trial.slurm.wait(lambda: trial.restarts(job) > 0, 120, "a job that is queued again")
    trial.slurm.start_node("n1")
    assert trial.finished(job, "killed") == "COMPLETED", trial.log("killed")[-1500:]
    (step,) = re.findall(r"resuming from step (\d+)", trial.log("killed"))[-1:]
    assert int(step) >= 2 * EVERY
    return f"went on from step {step}; {trial.same('killed')}"


def stopped(trial: Trial) -> str:
    """The warning before the time is up: ranks save, the job queues itself again and goes on."""
    job = trial.submit("stopped", "--checkpoint", "saved", "--checkpoint-every", str(EVERY))
    trial.checkpoint_of(job, "stopped", EVERY)
    trial.slurm.called("scancel", "--signal=TERM", job)
    trial.slurm.wait(lambda: trial.restarts(job) > 0, 60, "a job that has queued itself again")
    assert trial.finished(job, "stopped") == "COMPLETED", trial.log("stopped")[-1500:]
    (step,) = re.findall(r"resuming from step (\d+)", trial.log("stopped"))[-1:]
    assert int(step) % EVERY, "it went on from a checkpoint that was due anyway"
    return f"saved step {step} and went on; {trial.same('stopped')}"


def unreachable(trial: Trial) -> str:
    """An address that does not resolve ends the job in seconds, with one sentence."""
    start = time.monotonic()
    job = trial.submit("unreachable", MASTER_ADDR="no-such-host.invalid")
    assert trial.finished(job, "unreachable", 60) == "FAILED"
    (said, *_) = re.findall(r"error: MASTER_ADDR is .*", trial.log("unreachable"))
    assert "Traceback" not in trial.log("unreachable")
    return f"{time.monotonic() - start:.0f} s: {said}"


def whole(trial: Trial) -> str:
    """The machine is measured, planned for and used in one allocation."""
    start = time.monotonic()
    job = trial.submit("whole", kind="slurm-all", steps=10)
    assert trial.finished(job, "whole", 1750) == "COMPLETED", trial.log("whole")[-1500:]
    run = artifacts.read(trial.folder / "whole" / "run.json", "run", RunFile)
    assert run.machine_fingerprint == run.environment.fingerprint, "it ran elsewhere than it was planned for"
    return f"{time.monotonic() - start:.0f} s, {run.runs[0].plan.id}"


TRIALS: dict[str, Callable[[Trial], str]] = {
    one.__name__: one for one in (undisturbed, killed, stopped, unreachable, whole)
}
USUAL = ("undisturbed", "killed", "stopped", "unreachable")


def main(names: list[str]) -> int:
    """Run the trials of these names, the usual ones where there are none; how many failed."""
    if why := missing():
        print(f"skipped: {why}")
        return 0
    # The daemons end with it, whatever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    failed = 0
    with tempfile.TemporaryDirectory(prefix="trainwright-slurm-") as folder, cluster(Path(folder)) as slurm:
        trial = Trial(slurm, Path(folder, "jobs"))
        trial.folder.mkdir()
        for name in names or USUAL:
            try:
                print(f"{name:12} ok     {TRIALS[name](trial)}", flush=True)
            except (AssertionError, TimeoutError, ValueError, OSError) as error:
                failed += 1
                print(f"{name:12} FAILED {error}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
