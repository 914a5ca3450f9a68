"""What is noted while a step runs: when each action started and stopped, at the cost of reading a clock.

On CPU the clock is the system-wide monotonic one, so the ranks of one machine share a time axis. On CUDA actions are
bracketed by events and read after the step; each rank's axis starts at its own synchronised step start.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import torch

from executor.observe.events import Action, StepTrace

Mark = float | torch.cuda.Event


@dataclass(slots=True)
class Recorder:
    """Collects one step at a time; `begin`, actions, `finish`. One that is not on notes nothing."""

    device: torch.device
    is_on: bool = True
    _start: float = 0.0
    _origin: Mark = 0.0
    _notes: list[tuple[str, int, Mark, Mark, int]] = field(default_factory=list)
    _ready: Mark | None = None
    # Gradients are reduced on threads of the communication library, which note their end themselves.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> Mark:
        """A point in time, on the device's own time line."""
        if self.device.type == "cpu" or not self.is_on:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self) -> None:
        """Start a step; what was noted of the one before is dropped."""
        self._synchronize()
        self._notes, self._ready = [], None
        self._start = time.perf_counter()
        self._origin = self.now()

    def note(self, name: str, microbatch: int, start: Mark, stop: Mark | None = None, stage: int = -1) -> None:
        """Note an action from `start` to `stop`, or to now, of one stage where the rank runs several."""
        if not self.is_on:
            return
        stop = self.now() if stop is None else stop
        with self._lock:
            self._notes.append((name, microbatch, start, stop, stage))

    def extend(self, *names: str) -> None:
        """Let the latest action of these names last until now."""
        for index in range(len(self._notes) - 1, -1, -1):
            name, microbatch, start, _, stage = self._notes[index]
            if name in names:
                self._notes[index] = (name, microbatch, start, self.now(), stage)
                return

    def bucket_ready(self) -> Mark:
        """Note that a gradient bucket is handed over now; the last one of a step counts."""
        self._ready = self.now()
        return self._ready

    def finish(self) -> StepTrace:
        """End the step."""
        self._synchronize()
        stop = time.perf_counter()
        with self._lock:
            actions = tuple(
                Action(name=name, microbatch=m, start_seconds=self._at(start), stop_seconds=self._at(end), stage=stage)
                for name, m, start, end, stage in self._notes
            )
        return StepTrace(
            start_seconds=self._start,
            stop_seconds=stop,
            actions=actions,
            ready_seconds=None if self._ready is None else self._at(self._ready),
        )

    def _at(self, mark: Mark) -> float:
        if isinstance(mark, float):
            return mark
        assert isinstance(self._origin, torch.cuda.Event)
        return self._start + 1e-3 * float(self._origin.elapsed_time(mark))

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
