"""Signs of life of every rank, from a thread of its own: who is stopped or lost is named, whatever the backend says.

Each rank beats in the place where its job met, and listens to the next one. A rank whose computing thread waits, in a
collective or on a device, still beats; one that is stopped, or whose host is gone, does not. Nobody's clock is trusted:
time counts only while the listener itself runs, so that a machine that sleeps and wakes accuses nobody.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

# Of the time that a rank waits for another, after which one without a sign of life is given up.
SILENT_SHARE = 0.9
BEATS_PER_TIMEOUT, MOST_SECONDS, LEAST_SECONDS = 10, 5.0, 0.2
LEFT = -1


class Board(Protocol):
    """Where all ranks of a job see what each has put."""

    def put(self, rank: int, text: str) -> None:
        """Replace what `rank` has there."""

    def get(self, rank: int) -> str:
        """What `rank` has there, "" for nothing."""


class FolderBoard:
    """A file for each rank, in the folder where ranks of one host meet."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt

    def put(self, rank: int, text: str) -> None:
        """Replace what `rank` has there."""
        path = self._path(rank)
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)

    def get(self, rank: int) -> str:
        """What `rank` has there, "" for nothing."""
        with contextlib.suppress(OSError):
            return self._path(rank).read_text(encoding="utf-8")
        return ""

    def _path(self, rank: int) -> Path:
        return self._folder / f"beat-{self._attempt}-{rank}.json"


class StoreBoard:
    """Keys in a store that the ranks reach over the network, by a connection that nothing else waits on."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def put(self, rank: int, text: str) -> None:
        """Replace what `rank` has there."""
        self._store.set(f"beat-{rank}", text)

    def get(self, rank: int) -> str:
        """What `rank` has there, "" for nothing."""
        key = f"beat-{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else ""


class Heart:
    """This rank's beats, and what it hears of others; `place` is where its own program stands.

    `on_silence` is called once, on the heart's thread, with the seconds that each silent rank was silent.
    """

    def __init__(
        self,
        board: Board,
        rank: int,
        num_ranks: int,
        timeout_seconds: float,
        on_silence: Callable[[Heart, Mapping[int, float]], None],
    ) -> None:
        self.rank, self.num_ranks, self.timeout_seconds = rank, num_ranks, timeout_seconds
        self.step = 0
        self.describe: Callable[[Mapping[int, float]], str] | None = None
        self.interval = min(MOST_SECONDS, max(LEAST_SECONDS, timeout_seconds / BEATS_PER_TIMEOUT))
        self._board, self._on_silence = board, on_silence
        self._over, self._number = threading.Event(), 0
        self._last: dict[str, int] = {}
        self._silent_seconds, self._asked = 0.0, time.monotonic()
        self._thread = threading.Thread(target=self._beat_until_over, name="heartbeats", daemon=True)

    @property
    def limit_seconds(self) -> float:
        """How long a rank may be silent."""
        return max(SILENT_SHARE * self.timeout_seconds, 3 * self.interval)

    def start(self) -> None:
        """Begin to beat, until told to stop or the program comes to its end."""
        self._beat()
        self._thread.start()
        atexit.register(self._stop_at_exit)

    def stop(self) -> None:
        """Beat no more, and say so; where the board cannot be reached, do not wait for it."""
        atexit.unregister(self._stop_at_exit)
        self._over.set()
        self._thread.join(2 * self.interval)

    def _stop_at_exit(self) -> None:
        # Of one that ends by an error, others are to say that it beats no more.
        if not hasattr(sys, "last_type"):
            self.stop()

    def silent(self, seconds: float) -> list[int]:
        """The ranks that do not beat while one listens for so long; not those that have left."""
        before = {rank: self._heard(rank) for rank in range(self.num_ranks)}
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._over.wait(min(left, self.interval)):
            if threading.current_thread() is self._thread:
                # Others listen too.
                self._beat()
        return [
            rank
            for rank, beat in before.items()
            if beat and beat["number"] != LEFT and self._heard(rank) == beat and rank != self.rank
        ]

    def _beat_until_over(self) -> None:
        # A store that cannot be reached is told by whoever uses it, or the network, next.
        with contextlib.suppress(RuntimeError):
            while not self._over.wait(self.interval):
                # A disk that is full may have room again: until then nobody is heard, and nobody accused.
                with contextlib.suppress(OSError):
                    self._beat()
                    mute = self._missed()
                    if mute and not self._over.is_set():
                        self._on_silence(self, dict.fromkeys(mute, self._silent_seconds))
                        return
            self._number = LEFT - 1
            with contextlib.suppress(OSError):
                self._beat()

    def _missed(self) -> list[int]:
        """The silent ranks, once the one that this one listens to has been so for too long."""
        watched = (self.rank + 1) % self.num_ranks
        heard, now = self._heard(watched), time.monotonic()
        # While this process was stopped itself, it has heard nobody.
        self._silent_seconds += min(now - self._asked, 2 * self.interval)
        self._asked = now
        if heard != self._last or heard.get("number", 0) == LEFT:
            self._last, self._silent_seconds = heard, 0.0
        elif heard and self._silent_seconds >= self.limit_seconds and watched != self.rank:
            mute = self.silent(3 * self.interval)
            return mute if watched in mute else []
        return []

    def _beat(self) -> None:
        self._number += 1
        self._board.put(self.rank, json.dumps({"number": self._number, "step": self.step}))

    def _heard(self, rank: int) -> dict[str, int]:
        return _beat_of(self._board, rank)


def last_steps(board: Board, num_ranks: int) -> dict[int, int]:
    """The step in which each rank said last that it stands, of those that have beaten."""
    return {rank: beat["step"] for rank in range(num_ranks) if (beat := _beat_of(board, rank))}


def _beat_of(board: Board, rank: int) -> dict[str, int]:
    text = board.get(rank)
    beat: dict[str, int] = json.loads(text) if text else {}
    return beat


def words(heart: Heart, seconds: Mapping[int, float]) -> str:
    """What is said of silent ranks, in the words of whoever knows what they do."""
    if heart.describe is not None:
        return heart.describe(seconds)
    first = min(seconds)
    return (
        f"rank {first} of {heart.num_ranks} hangs: it gave no sign of life for {seconds[first]:.0f} s; it is stopped, "
        "or its host is lost"
    )
