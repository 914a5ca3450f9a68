"""Prediction against measurement, in numbers: one row per plan that ran.

An error is predicted / measured - 1: positive where the plan ran faster than predicted. A measured time is the median
of the timed steps. Runs with more ranks than cores, or on a busy machine, are shown, but no case, summary or
calibration is built on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from executor.run.measurement import PlanRun, RunFile
from planner.parts import PART_NAMES
from planner.plans import Plan
from planner.timeline import bubble_fraction
from profiles.errors import ArtifactError


@dataclass(frozen=True, slots=True, kw_only=True)
class Quartiles:
    """Lower quartile, median and upper quartile of step times, in seconds."""

    lower_seconds: float
    median_seconds: float
    upper_seconds: float

    @property
    def spread_fraction(self) -> float:
        """Interquartile range over median."""
        return (self.upper_seconds - self.lower_seconds) / self.median_seconds


def quartiles(seconds: Iterable[float]) -> Quartiles:
    """Quartiles of step times, interpolated linearly."""
    lower, median, upper = (float(value) for value in np.percentile(list(seconds), (25, 50, 75)))
    return Quartiles(lower_seconds=lower, median_seconds=median, upper_seconds=upper)


def kind_of_plan(plan: Plan) -> str:
    """The family a plan belongs to, in a few words."""
    axes = [
        name
        for name, degree in (
            ("data", plan.data_parallel),
            ("tensor", plan.tensor_parallel),
            ("pipeline", plan.pipeline_parallel),
        )
        if degree > 1
    ]
    if not axes:
        return "one device"
    if len(axes) > 1:
        return " x ".join(axes)
    if axes == ["data"] and plan.codec != "none":
        return "data, compressed"
    if axes == ["data"] and plan.zero_stage:
        return "data, sharded"
    return axes[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One plan that ran. Measured values that nobody could observe are None.

    `why_not_judged` says what made its times say little, "" where they are judged; `is_as_priced` whether what ran it
    is what it was priced for.
    """

    source: str
    run: PlanRun
    why_not_judged: str
    measured: Quartiles
    is_as_priced: bool = True

    @property
    def is_judged(self) -> bool:
        """Whether its times mean anything."""
        return not self.why_not_judged

    @property
    def plan_id(self) -> str:
        """The plan's short name, and which engine ran it where that was not this program."""
        words = self.run.engine_words
        return f"{self.run.plan.id} by {words}" if words else self.run.plan.id

    @property
    def predicted_seconds(self) -> float:
        """Predicted seconds of a step."""
        return self.run.prediction.step_seconds

    @property
    def measured_seconds(self) -> float:
        """Median measured seconds of a step."""
        return self.measured.median_seconds

    @property
    def error_fraction(self) -> float:
        """Signed error of the step time: predicted / measured - 1."""
        return self.predicted_seconds / self.measured_seconds - 1

    @property
    def is_inside_band(self) -> bool:
        """Whether the measured median lies in the predicted band."""
        return self.run.prediction.low_seconds <= self.measured_seconds <= self.run.prediction.high_seconds

    @property
    def predicted_peak_bytes(self) -> float:
        """Predicted peak of the fullest rank, in bytes."""
        return max((self.run.prediction.peak_bytes, *self.run.prediction.stage_peak_bytes))

    @property
    def measured_peak_bytes(self) -> float | None:
        """Measured peak of the fullest rank, in bytes."""
        return max(self.run.measurement.peak_bytes, default=0.0) or None

    @property
    def memory_error_fraction(self) -> float | None:
        """Signed error of the peak: predicted / measured - 1."""
        measured = self.measured_peak_bytes
        return None if measured is None else self.predicted_peak_bytes / measured - 1

    def part_seconds(self, part: str) -> tuple[float, float | None]:
        """Predicted and measured seconds of one part of the step."""
        return self.run.prediction.seconds.get(part, 0.0), self.run.measurement.seconds.get(part)

    def comparable_seconds(self, part: str) -> tuple[float, float | None]:
        """Predicted and measured seconds of the same work.

        Recomputation runs inside the backward pass; where it is not observed by itself, measured compute holds it.
        """
        predicted, measured = self.part_seconds(part)
        recompute, observed = self.part_seconds("recompute")
        return (predicted + recompute, measured) if part == "compute" and observed is None else (predicted, measured)

    def part_difference_seconds(self, part: str) -> float | None:
        """Predicted minus measured seconds of one part."""
        predicted, measured = self.comparable_seconds(part)
        return None if measured is None else predicted - measured

    def to_json(self) -> dict[str, Any]:
        """Every number of this row but the timeline."""
        prediction, measurement = self.run.prediction, self.run.measurement
        return {
            "source": self.source,
            "rank": self.run.rank,
            "plan_id": self.run.plan.id,
            "engine": self.run.engine,
            "engine_version": self.run.engine_version,
            "kind": kind_of_plan(self.run.plan),
            "plan": asdict(self.run.plan),
            "is_baseline": self.run.is_baseline,
            "is_judged": self.is_judged,
            "why_not_judged": self.why_not_judged,
            "load": None if measurement.load is None else asdict(measurement.load),
            "predicted_seconds": self.predicted_seconds,
            "predicted_low_seconds": prediction.low_seconds,
            "predicted_high_seconds": prediction.high_seconds,
            "measured_seconds": self.measured_seconds,
            "measured_lower_quartile_seconds": self.measured.lower_seconds,
            "measured_upper_quartile_seconds": self.measured.upper_seconds,
            "spread_fraction": self.measured.spread_fraction,
            "num_timed_steps": len(measurement.step_seconds),
            "error_fraction": self.error_fraction,
            "is_inside_band": self.is_inside_band,
            "parts": {
                part: {
                    "predicted_seconds": self.part_seconds(part)[0],
                    "measured_seconds": self.part_seconds(part)[1],
                    "difference_seconds": self.part_difference_seconds(part),
                }
                for part in PART_NAMES
            },
            "predicted_bytes_by_kind": dict(prediction.bytes_per_rank),
            "predicted_peak_bytes": self.predicted_peak_bytes,
            "measured_peak_bytes": self.measured_peak_bytes,
            "measured_peak_kind": measurement.peak_kind,
            "memory_error_fraction": self.memory_error_fraction,
            "predicted_bubble_fraction": bubble_fraction(prediction.spans, self.run.plan),
            "measured_bubble_fraction": bubble_fraction(measurement.spans, self.run.plan),
            "predicted_tokens_per_second": prediction.tokens_per_second,
            "measured_tokens_per_second": measurement.tokens_per_second,
            "loss_check": asdict(measurement.loss_check),
            "losses": list(measurement.losses),
            "step_seconds": list(measurement.step_seconds),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A run file and the name it goes by in the report."""

    name: str
    file: RunFile

    @property
    def question(self) -> tuple[object, ...]:
        """What must be equal for two files to be about the same case."""
        file, environment = self.file, self.file.environment
        return (
            file.workload.digest,
            file.machine_fingerprint,
            environment.fingerprint,
            environment.num_devices,
            environment.oversubscribed,
            file.global_batch_size,
            file.sequence_length,
        )


def rows_of(source: Source) -> tuple[Row, ...]:
    """The rows of one run file, in the order of rank.

    Raises: ArtifactError where a plan has no timed steps or a time is not positive.
    """
    rows = []
    for run in sorted(source.file.runs, key=lambda run: run.rank):
        if not run.measurement.step_seconds:
            raise ArtifactError(f"{source.name}: plan '{run.plan.id}' has no timed steps; run `execute` again")
        if min((run.prediction.step_seconds, *run.measurement.step_seconds)) <= 0:
            raise ArtifactError(f"{source.name}: plan '{run.plan.id}' has a step time that is not above 0 seconds")
        is_as_priced = run.engine == source.file.stack
        why = source.file.environment.why_not_judged(run.measurement.load)
        if not is_as_priced:
            why = f"run by {run.engine}, priced for {source.file.stack}"
        measured = quartiles(run.measurement.step_seconds)
        rows.append(Row(source=source.name, run=run, why_not_judged=why, measured=measured, is_as_priced=is_as_priced))
    return tuple(rows)
