"""Signs of life: who gives none is named, and nobody else."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from profiles.errors import ArtifactError, LostPeer, RankFailure
from profiles.ranks.causes import Ended, first_cause
from profiles.ranks.exhausted import Counted, counted
from profiles.ranks.heartbeats import LEFT, FolderBoard, Heart, last_steps, words
from profiles.ranks.leftovers import GRACE_SECONDS, Reaper, swept
from profiles.ranks.processes import LAUNCHER_VARIABLE, birth, process_path
from profiles.ranks.rank import FOLDER_VARIABLE, _give_up, describe, failure_path, result_path

TIMEOUT = 2.0


class Hearts:
    """The hearts of a job whose ranks are threads of this process."""

    def __init__(self, folder: Path, count: int) -> None:
        self.said: list[tuple[int, dict[int, float]]] = []
        self.board = FolderBoard(folder, 0)
        self.hearts = [Heart(self.board, rank, count, TIMEOUT, self._note) for rank in range(count)]

    def _note(self, heart: Heart, seconds: Mapping[int, float]) -> None:
        self.said.append((heart.rank, dict(seconds)))


@pytest.mark.alone
def test_who_is_silent_is_named_by_who_listens_to_it_within_the_time_out(tmp_path: Path) -> None:
    job = Hearts(tmp_path, 4)
    for heart in job.hearts:
        heart.step = heart.rank
        heart.start()
    time.sleep(2 * job.hearts[0].interval)
    assert last_steps(job.board, 4) == {0: 0, 1: 1, 2: 2, 3: 3}
    # Two that are neighbours, as those of a host that is lost.
    for rank in (1, 2):
        job.hearts[rank]._beat = lambda: None  # type: ignore[method-assign]
    began = time.monotonic()
    while not any(rank == 0 for rank, _ in job.said) and time.monotonic() - began < 10 * TIMEOUT:
        time.sleep(0.02)
    heard = dict(job.said)[0]
    assert sorted(heard) == [1, 2]
    assert 0.9 * TIMEOUT <= heard[1] <= 2 * TIMEOUT
    # Rank 3, whose listener is silent, is accused by nobody.
    assert not any(3 in seconds for _, seconds in job.said)
    assert words(job.hearts[0], heard).startswith("rank 1 of 4 hangs: it gave no sign of life for 2 s; it is stopped")
    for heart in job.hearts:
        heart.stop()


@pytest.mark.alone
def test_who_listens_for_others_is_not_silent_itself(tmp_path: Path) -> None:
    job = Hearts(tmp_path, 4)
    for heart in job.hearts:
        heart.start()
    for rank in (1, 3):
        job.hearts[rank]._beat = lambda: None  # type: ignore[method-assign]
    began = time.monotonic()
    while not {0, 2} <= {rank for rank, _ in job.said} and time.monotonic() - began < 10 * TIMEOUT:
        time.sleep(0.02)
    for heart in job.hearts:
        heart.stop()
    assert {rank: sorted(heard) for rank, heard in job.said if rank in (0, 2)} == {0: [1, 3], 2: [1, 3]}


@pytest.mark.alone
def test_a_disk_that_is_full_for_a_while_accuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Hearts(tmp_path, 2)
    for heart in job.hearts:
        heart.start()

    def put(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as full:
        full.setattr(FolderBoard, "put", put)
        time.sleep(2 * TIMEOUT)
    before = job.board.get(1)
    time.sleep(3 * job.hearts[0].interval)
    assert job.board.get(1) != before
    for heart in job.hearts:
        heart.stop()
    assert not job.said


@pytest.mark.alone
def test_who_has_left_is_not_missed(tmp_path: Path) -> None:
    job = Hearts(tmp_path, 2)
    for heart in job.hearts:
        heart.start()
    job.hearts[1].stop()
    assert json.loads(job.board.get(1))["number"] == LEFT
    time.sleep(1.5 * TIMEOUT)
    assert not job.said
    job.hearts[0].stop()


@pytest.mark.parametrize(("end", "has_left"), [("", True), ("raise ValueError", False)])
def test_a_program_that_comes_to_its_end_has_left(tmp_path: Path, end: str, has_left: bool) -> None:
    code = (
        "import pathlib\nfrom profiles.ranks.heartbeats import FolderBoard, Heart\n"
        f"Heart(FolderBoard(pathlib.Path({str(tmp_path)!r}), 0), 0, 2, 60.0, print).start()\n{end}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, check=False)
    assert (json.loads(FolderBoard(tmp_path, 0).get(0))["number"] == LEFT) == has_left


def cgroup(root: Path, version: int, kills: int, limit: str) -> Path:
    """Files as the kernel shows them."""
    names = ("memory.oom_control", "memory.limit_in_bytes") if version == 1 else ("memory.events", "memory.max")
    folder = root / "memory" / "job" if version == 1 else root / "job"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"low 0\nunder_oom 0\noom_kill {kills}\noom_group_kill 7\n")
    (folder / names[1]).write_text(f"{limit}\n")
    (root / "own").write_text("5:memory:/job\n" if version == 1 else "0::/job\n")
    return root / "own"


@pytest.mark.parametrize(
    ("version", "limit", "known"),
    [(1, "2147483648", 2**31), (1, "9223372036854771712", None), (2, "2147483648", 2**31), (2, "max", None)],
)
def test_what_the_kernel_counted_is_read(tmp_path: Path, version: int, limit: str, known: int | None) -> None:
    own = cgroup(tmp_path, version, 3, limit)
    assert counted(tmp_path, own) == Counted(3, known)
    assert counted(tmp_path, tmp_path / "none") == Counted(None)


def ended_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None, after: int | None) -> str:
    """What is said where rank 1 had SIGKILL, and the kernel had counted so many of those before and after."""
    monkeypatch.setattr("profiles.ranks.causes.counted", lambda: Counted(after, 2**31))
    codes = {0: 1, 1: -signal.SIGKILL}
    lost = describe(0, LostPeer("a rank that rank 0 talked to is gone"))
    failure_path(tmp_path, 0).write_text(json.dumps({name: getattr(lost, name) for name in lost.__slots__}))
    ended = Ended(folder=tmp_path, num_ranks=2, codes=codes, memory_before=Counted(before), steps={0: 5, 1: 4})
    return str(first_cause(ended))


def test_who_killed_a_rank_is_said_as_far_as_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = "rank 1 of 2 was killed by SIGKILL, last seen in step 4, "
    assert ended_by(tmp_path, monkeypatch, 2, 3).startswith(f"{began}by the kernel, as memory ran out of the 2 GiB")
    assert ended_by(tmp_path, monkeypatch, 2, 2) == f"{began}from outside: memory had not run out"
    assert ended_by(tmp_path, monkeypatch, None, None) == f"{began}from outside, or by the kernel for lack of memory"


def test_whom_the_launcher_killed_was_killed_by_nobody_else(tmp_path: Path) -> None:
    codes = {0: 1, 1: -signal.SIGKILL}
    ended = Ended(folder=tmp_path, num_ranks=2, codes=codes, killed=frozenset({1}), steps={0: 5, 1: 5})
    result_path(tmp_path, 0).write_text("null")
    assert str(first_cause(ended)) == (
        "rank 1 of 2 hung, last seen in step 5: the others had ended, it had not in 5 s, and the launcher killed it"
    )
    said = describe(0, RankFailure("rank 1 of 2 hangs: it gave no sign of life for 7 s"))
    failure_path(tmp_path, 0).write_text(json.dumps({name: getattr(said, name) for name in said.__slots__}))
    assert str(first_cause(ended)) == said.message


def test_a_ranks_own_word_goes_before_that_of_one_that_lost_it(tmp_path: Path) -> None:
    for rank, error in enumerate((LostPeer("it is gone"), ArtifactError("no such file"))):
        said = describe(rank, error)
        failure_path(tmp_path, rank).write_text(json.dumps({name: getattr(said, name) for name in said.__slots__}))
    found = first_cause(Ended(folder=tmp_path, num_ranks=2, codes={0: 1, 1: 1}))
    assert isinstance(found, ArtifactError)
    failure_path(tmp_path, 1).unlink()
    result_path(tmp_path, 1).write_text("null")
    assert isinstance(first_cause(Ended(folder=tmp_path, num_ranks=2, codes={0: 1})), LostPeer)


def test_a_rank_ends_where_its_word_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setenv(LAUNCHER_VARIABLE, "1")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    heart = Heart(FolderBoard(tmp_path, 0), 0, 2, TIMEOUT, _give_up)
    with pytest.raises(SystemExit):
        _give_up(heart, {1: 7.0})
    assert "rank 1 of 2 hangs" in str(first_cause(Ended(folder=tmp_path, num_ranks=2, codes={0: 1})))
    failure_path(tmp_path, 0).unlink()
    # As on a disk that is full, but for everybody.
    failure_path(tmp_path, 0).mkdir()
    with pytest.raises(SystemExit):
        _give_up(heart, {1: 7.0})


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])


@pytest.mark.alone
def test_what_heeds_no_signal_is_killed_once_others_are_gone(tmp_path: Path) -> None:
    first, second, stranger = sleeper(), sleeper(), sleeper()
    try:
        for rank, process in enumerate((first, second)):
            process_path(tmp_path, 0, rank).write_text(f"{process.pid} {birth(process.pid)}")
        # A process that was given the number of one of an attempt before.
        process_path(tmp_path, 1, 0).write_text(f"{stranger.pid} 1")
        os.kill(second.pid, signal.SIGSTOP)
        reaper = Reaper(tmp_path)
        with reaper.watching():
            time.sleep(1)
            assert second.poll() is None
            first.kill()
            first.wait()
            began = time.monotonic()
            assert second.wait(timeout=30) == -signal.SIGKILL
            assert time.monotonic() - began > GRACE_SECONDS - 1
        assert reaper.killed == {(0, 1)}
        assert stranger.poll() is None
    finally:
        for process in (first, second, stranger):
            process.kill()
            process.wait()


def test_a_folder_goes_with_a_process_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    code = (
        "import pathlib, sys\nfrom profiles.ranks.leftovers import swept\n"
        f"with swept(pathlib.Path({str(folder)!r})):\n    print(1, flush=True)\n    input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    assert folder.exists()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    folder.mkdir()
    with swept(folder):
        pass
    assert folder.exists()
