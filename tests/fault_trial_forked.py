"""Fault trials of the command itself, `execute` with checkpoints, whose ranks are forked from it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

from executor.run.checkpoint import latest
from executor.run.measurement import RunFile
from profiles import artifacts
from tests.fault_trial_kinds import DATA, KINDS, SOURCE, START_SECONDS, Outcome, Setting, _processes_of, _wait_for
from tests.plan_builders import write_plan_file

NUM_STEPS, SAVED_EVERY, KEY = 150, 10, "execute"
# Who is killed, one trial after the other.
VICTIMS = ("a rank", "the server that forks ranks", "the command")


def forked(setting: Setting) -> Outcome:
    """Someone of the processes of `execute` is killed at a random moment after the first save.

    Of ranks and their server all are started again at once; a command that was killed leaves nothing behind, and goes
    on with --resume.
    """
    victim = VICTIMS[setting.num_forked % len(VICTIMS)]
    setting.num_forked += 1
    place = Path(setting.payload(DATA)["place"])
    wanted, temporary = _undisturbed(setting), place / "tmp"
    temporary.mkdir()
    program = _execute(place, ["--max-restarts", "1"], temporary)
    try:
        server, ranks = _family(psutil.Process(program.pid))
        _wait_for(lambda: latest(place / "saved") is not None or program.poll() is not None)
        time.sleep(setting.random.uniform(0.0, 1.0))
        with contextlib.suppress(psutil.NoSuchProcess):
            {"a rank": setting.random.choice(ranks), "the command": psutil.Process(program.pid)}.get(
                victim, server
            ).kill()
        said, errors = program.communicate(timeout=START_SECONDS)
    finally:
        program.kill()
    _wait_for(lambda: not _processes_of(temporary), 20)
    _wait_for(lambda: not any(temporary.glob("trainwright-*")), 10)
    if victim == "the command" and program.returncode:
        program = _execute(place, ["--resume"], temporary)
        said, errors = program.communicate(timeout=START_SECONDS)
    if program.returncode:
        # What cannot go on says why.
        is_true = re.search(r"rank [01] of 2 was killed by SIGKILL", errors) is not None
        return Outcome(said=is_true, sentence=errors.strip().splitlines()[-1])
    found, first_step = _losses(place / "run.json")
    restart = re.search(r"note: (a rank died and all were restarted \(restart 1\), resuming from (\S+))", said)
    is_true = restart is not None and restart[2].endswith(f"step-{first_step:08d}")
    wrong = "a sentence that is not true" if restart is not None and not is_true else ""
    sentence = "" if restart is None else restart[1]
    return Outcome(survived=True, identical=found == wanted, sentence=sentence, said=is_true, wrong=wrong)


def _undisturbed(setting: Setting) -> list[float]:
    """Losses of a run that nothing disturbs."""
    if KEY not in setting.losses:
        place = Path(setting.payload(DATA)["place"])
        program = _execute(place, [], place)
        _, errors = program.communicate(timeout=START_SECONDS)
        assert program.returncode == 0, errors
        setting.losses[KEY], _ = _losses(place / "run.json")
    return setting.losses[KEY]


def _losses(path: Path) -> tuple[list[float], int]:
    """Losses of all steps, and the step that the last ranks began with."""
    (run,) = artifacts.read(path, "run", RunFile).runs
    return [*run.measurement.losses_before, *run.measurement.losses], run.measurement.first_step


def _execute(place: Path, more: list[str], temporary: Path) -> subprocess.Popen[str]:
    """The command on a plan of two ranks."""
    plan = place / "plan.json"
    if not plan.exists():
        write_plan_file(plan, DATA)
    arguments = [
        str(plan), "--steps", str(NUM_STEPS), "--warmup", "0", "-o", str(place / "run.json"), "--checkpoint",
        str(place / "saved"), "--checkpoint-every", str(SAVED_EVERY), *more,
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "executor", *arguments], cwd=SOURCE, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _family(program: psutil.Process) -> tuple[psutil.Process, list[psutil.Process]]:
    """The server that the command has forked, which looks like it, and the ranks that this has forked."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            servers = [child for child in program.children() if child.cmdline() == program.cmdline()]
            if servers and len(servers[0].children()) == DATA.num_devices:
                return servers[0], servers[0].children()
        time.sleep(0.05)
    raise AssertionError("no ranks were forked")


ALL_KINDS = {**KINDS, "a process of `execute` is killed": (6, forked)}
