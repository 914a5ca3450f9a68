"""Some steps of a user's loop, timed, beside what was predicted of them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from planner.prediction import Candidate
from profiles.errors import InputError
from profiles.ranks.rank import Rank
from profiles.units import format_bytes, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedBesideMeasured:
    """Seconds of a step, predicted and measured, the slowest rank's median, and its middle half; bytes of a rank.

    What the plan does not say, or the device does not tell, is None.
    """

    num_steps: int
    step_seconds: float
    quartile_seconds: tuple[float, float]
    predicted_seconds: float | None
    peak_bytes: float | None
    predicted_bytes: float | None

    @property
    def error_fraction(self) -> float | None:
        """By how much the prediction is off, over what was measured."""
        return None if self.predicted_seconds is None else self.predicted_seconds / self.step_seconds - 1

    def __str__(self) -> str:
        spread = (self.quartile_seconds[1] - self.quartile_seconds[0]) / 2 / self.step_seconds
        text = f"{format_seconds(self.step_seconds)} ±{spread:.0%} a step over {self.num_steps} steps"
        if self.error_fraction is not None and self.predicted_seconds is not None:
            text += f", predicted {format_seconds(self.predicted_seconds)} ({self.error_fraction:+.1%})"
        if self.peak_bytes is not None:
            text += f"; {format_bytes(self.peak_bytes)} at most"
            text += f", predicted {format_bytes(self.predicted_bytes)}" if self.predicted_bytes is not None else ""
        return text


@dataclass(slots=True, kw_only=True)
class MeasuredSteps:
    """Seconds of steps: each lasts until the next one begins, so that the optimizer and the loop are in it.

    One that `end` ends before lasts until then.
    """

    num_steps: int
    device: torch.device
    seconds: list[float] = field(default_factory=list)
    _since: float | None = None

    def begin(self) -> None:
        """Note that a step begins, unless enough were measured."""
        self.end()
        if len(self.seconds) >= self.num_steps:
            return
        self._since = self._now()
        if self.device.type == "cuda" and not self.seconds:
            torch.cuda.reset_peak_memory_stats(self.device)

    def end(self) -> None:
        """Note that the step under way is over: what is done until the next one begins is in none."""
        if self._since is not None:
            self.seconds.append(self._now() - self._since)
            self._since = None

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def beside(self, candidate: Candidate | None, rank: Rank) -> PredictedBesideMeasured:
        """What was measured, the slowest rank's each step, beside a prediction; collective.

        Raises: InputError where there was no whole step.
        """
        own = self.seconds
        peak = float(torch.cuda.max_memory_allocated(self.device)) if self.device.type == "cuda" else None
        everyone: list[Any] = [(own, peak)]
        if rank.num_ranks > 1:
            everyone = [None] * rank.num_ranks
            dist.all_gather_object(everyone, (own, peak))
        seconds = [max(step) for step in zip(*(each for each, _ in everyone), strict=False)]
        if not seconds:
            raise InputError("no complete step was measured yet: a step lasts until the next one begins")
        quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        prediction = None if candidate is None else candidate.prediction
        return PredictedBesideMeasured(
            num_steps=len(seconds),
            step_seconds=statistics.median(seconds),
            quartile_seconds=(quartiles[0], quartiles[2]),
            predicted_seconds=None if prediction is None else prediction.step_seconds,
            peak_bytes=None if peak is None else max(each for _, each in everyone),
            predicted_bytes=None if prediction is None else prediction.peak_bytes,
        )
