"""gloo's threads are waited for while one has something to do, by the states that Linux tells of them."""

import hashlib
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from executor.observe import gloo_threads
from executor.observe.gloo_threads import LOOK_SECONDS, NAME, NUM_LOOKS, TASKS, UNSEEN_SECONDS, wait_until_idle

LINUX = pytest.mark.skipif(not TASKS.exists(), reason="threads are told of by Linux alone")


def thread(tasks: Path, number: int, name: str, state: str) -> None:
    folder = tasks / str(number)
    folder.mkdir(exist_ok=True)
    (folder / "comm").write_text(name + "\n")
    (folder / "stat").write_text(f"{number} ({name}) {state} 1 1 1 0 -1\n")


def slept(monkeypatch: pytest.MonkeyPatch, tasks: Path, states: list[str]) -> list[float]:
    """The naps of a wait, in each of which a thread of gloo gets to the next state."""
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        thread(tasks, 7, NAME, states[min(len(naps), len(states)) - 1])

    monkeypatch.setattr(gloo_threads.time, "sleep", sleep)
    wait_until_idle(tasks)
    return naps


@pytest.mark.parametrize(
    ("states", "looks"),
    [
        ("S", NUM_LOOKS),
        ("RRRS", 3 + NUM_LOOKS),
        ("SSRS", 3 + NUM_LOOKS),
        ("DS", 1 + NUM_LOOKS),
        ("SRSRS", 4 + NUM_LOOKS),
    ],
)
def test_they_are_to_be_seen_asleep_thrice_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: str, looks: int
) -> None:
    thread(tmp_path, 1, "python", "R")
    thread(tmp_path, 2, "odd) R (name", "R")
    assert slept(monkeypatch, tmp_path, list(states)) == [LOOK_SECONDS] * looks


def test_one_that_never_sleeps_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(gloo_threads.time, "monotonic", lambda: float(next(ticks)))
    assert 2 < len(slept(monkeypatch, tmp_path, ["R"])) < 20


@pytest.mark.parametrize("folder", ["none", "."])
def test_where_they_cannot_be_seen_a_while_is_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(gloo_threads.time, "sleep", naps.append)
    thread(tmp_path, 1, "python", "R")
    wait_until_idle(tmp_path / folder)
    assert naps == [LOOK_SECONDS, UNSEEN_SECONDS]


@LINUX
def test_a_thread_that_computes_is_waited_for() -> None:
    """As one that has not had a core for a while: another thread of this process under gloo's name."""
    ended: list[float] = []

    def compute() -> None:
        Path(TASKS, str(threading.get_native_id()), "comm").write_text(NAME)
        begun.set()
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            # Long calls without the lock of Python, for which it would sleep.
            hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
        ended.append(time.monotonic())

    begun = threading.Event()
    worker = threading.Thread(target=compute)
    worker.start()
    begun.wait()
    wait_until_idle()
    assert ended
    worker.join()


@LINUX
@pytest.mark.gloo
def test_torch_calls_them_so() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        # The thread names itself once it runs.
        until = time.monotonic() + 20
        names: list[str] = []
        while NAME not in names and time.monotonic() < until:
            names = [(task / "comm").read_text().strip() for task in TASKS.iterdir()]
    finally:
        dist.destroy_process_group()
    assert NAME in names
