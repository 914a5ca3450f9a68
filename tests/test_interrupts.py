"""Ctrl-C, as a terminal sends it to all processes of a command: one sentence, nobody and nothing left behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from executor.run.follow import Follower, saying_what_is_kept
from executor.run.run_folder import KeptRun
from planner.plans import Plan
from profiles.errors import EnvironmentFailure, Interrupted, Stopped
from profiles.ranks.rank import Report
from profiles.terminal.console import Console
from tests.plan_builders import write_plan_file


def interrupted(
    folder: Path, arguments: list[str], is_time: Callable[[psutil.Process], bool], number: int = signal.SIGINT
) -> str:
    """What a command says on standard error that is interrupted once it is time; its files go to `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder)},
    )  # fmt: skip
    own = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while not is_time(own):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    family = own.children(recursive=True)
    os.killpg(process.pid, number)
    begun = time.monotonic()
    _, errors = process.communicate(timeout=60)
    # Two seconds, on a machine that is busy with other tests too.
    assert time.monotonic() - begun < 20
    assert process.returncode == 128 + number
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    return errors


def test_a_rehearsal_ends_while_its_server_loads(tmp_path: Path) -> None:
    plan = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2, micro_batch_size=4))
    # The server's socket has a short address.
    folder = Path(tempfile.mkdtemp())

    def has_server(process: psutil.Process) -> bool:
        return any("forkserver" in " ".join(child.cmdline()) for child in process.children())

    errors = interrupted(folder, ["executor", str(plan), "--rehearse"], has_server)
    assert errors == "error: interrupted: nothing was written\n"
    assert not list(folder.iterdir())
    folder.rmdir()


def test_a_rehearsal_ends_by_sigterm_while_ranks_are_rehearsed(tmp_path: Path) -> None:
    plan = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2, micro_batch_size=4))
    folder = Path(tempfile.mkdtemp())

    def has_rank(process: psutil.Process) -> bool:
        return any("forkserver" in " ".join(child.cmdline()) and child.children() for child in process.children())

    # To the whole group, as `timeout` sends it.
    errors = interrupted(folder, ["executor", str(plan), "--rehearse"], has_rank, signal.SIGTERM)
    assert errors == "error: stopped by SIGTERM: nothing was written\n"
    assert not list(folder.iterdir())
    folder.rmdir()


def test_too_long_a_temporary_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2, micro_batch_size=4))
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "executor", str(plan), "--rehearse"],
        capture_output=True, text=True, env={**os.environ, "TMPDIR": str(folder)}, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert "set TMPDIR to a folder of a shorter name" in " ".join(done.stderr.split())


def test_a_file_of_all_plans_is_not_left_half_written(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    arguments = ["--model", "deepseek-v3", "--gpus", "512", "--cluster", "dgx-h100", "--global-batch", "1024"]

    def is_growing(_: psutil.Process) -> bool:
        return any(part.stat().st_size > 2**20 for part in tmp_path.glob(".all.csv*"))

    errors = interrupted(tmp_path, ["planner", *arguments, "--simulate", "--all", str(path)], is_growing)
    assert errors == "error: interrupted: nothing was written\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("end", "error", "how"),
    [(KeyboardInterrupt(), Interrupted, "interrupted"), (SystemExit(143), Stopped, "stopped by SIGTERM")],
)
def test_what_is_kept_of_a_run_is_said(end: BaseException, error: type, how: str, tmp_path: Path) -> None:
    def ended(checkpoints: str | None, kept: KeptRun | None) -> str:
        with pytest.raises(error) as caught, saying_what_is_kept(checkpoints, kept):
            raise end
        assert caught.value.exit_code == (130 if error is Interrupted else 143)
        return str(caught.value)

    kept = KeptRun(tmp_path, "2026-01-02T03:04:05+00:00", "model", 2)
    assert ended(None, None) == ended(str(tmp_path), kept) == f"{how}: nothing was written"
    newest = tmp_path / "step-00000010"
    newest.mkdir()
    kept.append({"step": 1})
    assert ended(str(tmp_path), kept) == (
        f"{how}: nothing was written but the checkpoints up to {newest} (continue with --resume) and the log {kept.log}"
    )
    with pytest.raises(SystemExit), saying_what_is_kept(None, None):
        raise SystemExit(3)


def test_a_report_that_cannot_be_told_stops_no_run(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "file").touch()
    kept = KeptRun(tmp_path / "file" / "runs", "2026-01-02T03:04:05+00:00", "model", 2)
    follow = Follower(Console(width=80), lambda _, words: told.append(words), False, kept)
    for number in range(3):
        follow(Report(fraction=0.5, text=f"{number}", values={"step": number}))
    assert told == ["0"]
    assert isinstance(follow.failure, EnvironmentFailure)
