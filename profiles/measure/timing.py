"""Timing of any callable: warm up, repeat, keep the median and the spread, with all ranks busy at the same time.

Several callables are timed in turns, so that a slow moment of the machine falls on all of them alike. Every rank makes
the same decisions (how many calls make one sample), since they are taken from numbers that the ranks agreed on, and
the slowest rank's median is what counts: a step waits for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

Action = Callable[[], object]
# A sample with less of the core than this was disturbed; fewer undisturbed ones than this make no median.
OWN_FRACTION = 0.97
FEWEST_OWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Median seconds of one call and the spread (interquartile range / median)."""

    seconds: float
    spread_fraction: float


def summarise(samples: Sequence[float]) -> Timing:
    """Median and spread of `samples` in seconds."""
    low, median, high = np.percentile(samples, (25, 50, 75))
    return Timing(seconds=float(median), spread_fraction=float((high - low) / median) if median > 0 else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Seconds of one call, and the fraction of them that this process was on the processor (1 where unknown)."""

    seconds: float
    own_fraction: float = 1.0


class Timer(Protocol):
    """Anything that tells how long a call takes."""

    def read(self, action: Action, calls: int = 1) -> Reading:
        """The mean of `calls` calls made one after the other."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTimer:
    """A clock of the host; `synchronise` waits for the device, so that its work is in the time."""

    clock: Callable[[], float] = time.perf_counter
    synchronise: Action = lambda: None
    own_clock: Callable[[], float] = time.process_time

    def read(self, action: Action, calls: int = 1) -> Reading:
        """The mean of `calls` calls made one after the other."""
        self.synchronise()
        start, own_start = self.clock(), self.own_clock()
        for _ in range(calls):
            action()
        self.synchronise()
        seconds, own_seconds = self.clock() - start, self.own_clock() - own_start
        return Reading(seconds=seconds / calls, own_fraction=own_seconds / seconds if seconds > 0 else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaTimer:
    """CUDA events on the current stream: what the device takes, whatever the host does meanwhile."""

    def read(self, action: Action, calls: int = 1) -> Reading:
        """The mean of `calls` calls made one after the other."""
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            action()
        stop.record()
        stop.synchronize()
        return Reading(seconds=float(start.elapsed_time(stop)) / 1e3 / calls)


def device_timer(device: torch.device) -> Timer:
    """The timer of kernels on `device`."""
    return CudaTimer() if device.type == "cuda" else HostTimer()


def host_timer(device: torch.device) -> HostTimer:
    """A timer of everything until `device` has finished, the host's part included."""
    return HostTimer(synchronise=torch.cuda.synchronize) if device.type == "cuda" else HostTimer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """The other ranks of the job, who measure the same at the same time; without a process group there are none."""

    device: torch.device

    @property
    def rank(self) -> int:
        """This process's rank."""
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def num_ranks(self) -> int:
        """How many ranks measure together."""
        return dist.get_world_size() if dist.is_initialized() else 1

    def meet(self) -> None:
        """Wait until every rank is here."""
        if self.num_ranks > 1:
            dist.barrier()

    def gather(self, values: Sequence[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Every rank's `values`. Shapes: (values,) to (ranks, values)."""
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        rows = [torch.empty_like(mine) for _ in range(self.num_ranks)]
        if self.num_ranks > 1:
            dist.all_gather(rows, mine)
        else:
            rows = [mine]
        return torch.stack(rows).cpu().numpy()

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of all ranks' values, element by element."""
        return [float(value) for value in self.gather(values).max(axis=0)]

    def slowest(self, timings: Sequence[Timing]) -> list[Timing]:
        """For each timing that of the rank with the largest median."""
        seconds = self.gather([timing.seconds for timing in timings])
        spreads = self.gather([timing.spread_fraction for timing in timings])
        ranks = seconds.argmax(axis=0)
        return [
            Timing(seconds=float(seconds[rank, column]), spread_fraction=float(spreads[rank, column]))
            for column, rank in enumerate(ranks)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """How things are timed: `repeats` samples of at least `sample_seconds` each, `max_calls` calls at most.

    While the spread exceeds `calm_fraction`, up to twice as many samples again are taken within `patience_seconds`.
    Of what takes less than `small_share` of all the actions' time no spread is waited for.
    Where a rank `has_own_core`, samples during which another process took it are left out if enough others remain.
    """

    timer: Timer
    peers: Peers
    repeats: int = 5
    sample_seconds: float = 2e-3
    max_calls: int = 100
    calm_fraction: float = 0.1
    patience_seconds: float = 0.1
    small_share: float = 0.0
    has_own_core: bool = False

    @property
    def device(self) -> torch.device:
        """Where the work runs."""
        return self.peers.device

    def time(self, actions: Sequence[Action]) -> list[Timing]:
        """Time `actions` in turns, all ranks at once; of each the slowest rank's median seconds."""
        if not actions:
            return []
        calls = [self._calls(seconds) for seconds in self._warm_up(actions)]
        readings: list[list[Reading]] = [[] for _ in actions]
        start = 0.0
        for count in range(3 * self.repeats):
            if count == self.repeats:
                start = time.perf_counter()
            if count >= self.repeats and not self._is_noisy(readings, time.perf_counter() - start):
                break
            self.peers.meet()
            for action, times, kept in zip(actions, calls, readings, strict=True):
                kept.append(self.timer.read(action, times))
        return self.peers.slowest([summarise(self._usable(kept)) for kept in readings])

    def time_one(self, action: Action) -> Timing:
        """Time a single action."""
        return self.time([action])[0]

    def _usable(self, readings: Sequence[Reading]) -> list[float]:
        own = [reading.seconds for reading in readings if reading.own_fraction > OWN_FRACTION]
        return own if self.has_own_core and len(own) >= FEWEST_OWN else [reading.seconds for reading in readings]

    def _is_noisy(self, readings: Sequence[Sequence[Reading]], waited_seconds: float) -> bool:
        """Whether any rank's median deserves more samples and there is time for them, as all ranks see it."""
        timings = [summarise(self._usable(kept)) for kept in readings]
        least = self.small_share * sum(timing.seconds for timing in timings)
        spread = max(timing.spread_fraction for timing in timings if timing.seconds >= least)
        worst_spread, longest_wait = self.peers.largest([spread, waited_seconds])
        return worst_spread > self.calm_fraction and longest_wait < self.patience_seconds

    def _warm_up(self, actions: Sequence[Action]) -> list[float]:
        self.peers.meet()
        # The first call also pays for memory and for choosing kernels; the second says how many calls make a sample.
        for action in actions:
            action()
        return self.peers.largest([self.timer.read(action).seconds for action in actions])

    def _calls(self, seconds: float) -> int:
        return max(1, min(self.max_calls, math.ceil(self.sample_seconds / max(seconds, 1e-9))))
