"""How far a rehearsal is, told while it runs: by FLOPs that are counted, of those that its steps have."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from executor.observe.counters import Ledger

# Between two words of one rehearsal.
TELL_SECONDS = 0.5
Progress = Callable[[float, str], object]


def silent(fraction: float, words: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The share of a rehearsal that is done, and a few words."""

    fraction: float
    words: str


class Watch:
    """Looks at what a ledger counts and tells how far `num_steps` steps of `step_flops` are; 0 where not known."""

    def __init__(self, ledger: Ledger, num_steps: int, step_flops: float, tell: Progress) -> None:
        self._ledger, self._num_steps, self._step_flops, self._tell = ledger, num_steps, step_flops, tell
        self._steps_done: int | None = None
        self._fraction = 0.0

    def begin_step(self) -> None:
        """Take the next of the steps for the one that runs; until the first one the model is built."""
        self._steps_done = 0 if self._steps_done is None else self._steps_done + 1

    def told(self) -> Told:
        """How far it is now."""
        operators = f"{self._ledger.num_operators:,} operators"
        if self._steps_done is None:
            return Told(fraction=0.0, words=f"building the model, {operators}")
        flops = float(sum(list(self._ledger.flops.values())))
        # What a law did not expect ends no step.
        step = min(flops / self._step_flops, 1.0) if self._step_flops else 0.0
        # Between two steps the ledger may be empty already.
        self._fraction = max(self._fraction, (self._steps_done + step) / self._num_steps)
        return Told(
            fraction=self._fraction,
            words=f"step {self._steps_done + 1} of {self._num_steps}, {operators}",
        )

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell again and again until the block ends, from a thread beside it."""
        ended = threading.Event()

        def tell() -> None:
            while not ended.wait(TELL_SECONDS):
                told = self.told()
                self._tell(told.fraction, told.words)

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
