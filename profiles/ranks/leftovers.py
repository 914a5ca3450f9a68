"""What is not left behind: ranks that do not end when their job does, and the job's folder. Torch-free."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from profiles.ranks.processes import birth

# What is left of an attempt has so long to end by itself once a rank of it is gone; torch's launcher gives 30 s.
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.5
# Waits for a word; where its end of the pipe closes without one, whoever held the other is dead, and its ranks die now.
SWEEP = 'read -r word && exit; rm -rf -- "$1"; sleep 1; rm -rf -- "$1"'


@dataclass(frozen=True, slots=True)
class Started:
    """A rank's process, as it said itself."""

    attempt: int
    rank: int
    process: int
    born: str

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or is stopped."""
        return birth(self.process) == self.born


class Reaper:
    """Kills ranks that do not end though others of their attempt are gone: one that is stopped heeds no SIGTERM."""

    def __init__(self, folder: Path) -> None:
        self.killed: set[tuple[int, int]] = set()
        self._folder, self._over = folder, threading.Event()
        self._gone_since: dict[int, float] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While entered, look after the ranks from a thread."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def last_attempt(self) -> int:
        """The newest attempt that a rank has started in."""
        return max((one.attempt for one in self._started()), default=0)

    def ended_by_launcher(self) -> set[int]:
        """The ranks of the last attempt that were killed here."""
        last = self.last_attempt()
        return {rank for attempt, rank in self.killed if attempt == last}

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            started = self._started()
            for attempt in {one.attempt for one in started}:
                self._look([one for one in started if one.attempt == attempt])

    def _look(self, ranks: list[Started]) -> None:
        alive = [one for one in ranks if one.is_alive]
        if not alive or not any(self._failed(one) for one in ranks if one not in alive):
            return
        since = self._gone_since.setdefault(ranks[0].attempt, time.monotonic())
        if time.monotonic() - since < GRACE_SECONDS:
            return
        for one in alive:
            self.killed.add((one.attempt, one.rank))
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.process, signal.SIGKILL)

    def _failed(self, one: Started) -> bool:
        """Whether a rank that is gone left before its end."""
        return not (self._folder / f"result-{one.rank}.json").exists()

    def _started(self) -> list[Started]:
        found = []
        for path in self._folder.glob("process-*-*"):
            _, attempt, rank = path.name.split("-")
            # Where there is no /proc, only the number.
            with contextlib.suppress(ValueError, OSError):
                process, born = path.read_text(encoding="utf-8").split()
                found.append(Started(int(attempt), int(rank), int(process), born))
        return found


@contextlib.contextmanager
def swept(folder: Path) -> Iterator[None]:
    """While entered, a small process waits to remove `folder` should this one be killed."""
    try:
        sweeper = subprocess.Popen(
            ["/bin/sh", "-c", SWEEP, "sh", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for whoever cleans up by itself.
            start_new_session=True,
        )
    except OSError:
        # No shell, or no more processes: the folder is left where this one is killed.
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            sweeper.communicate(b"done\n")
