"""What the runs teach the model: one bounded correction per part of the step, and one for the whole step.

A factor is the median of measured / predicted over the runs of one machine. It is a proposal: beside it stands the
error that runs left out of the fit would have had, before and after. Runs that are not judged teach nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from reports.comparison import Row

CALIBRATED_PARTS: Final = ("compute", "tensor_comm", "data_comm", "pipeline_comm", "codec", "optimizer")
LOWEST_FACTOR, HIGHEST_FACTOR = 0.5, 2.0
# A part below this share of the predicted step is too small for its ratio to mean anything.
SMALLEST_SHARE: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCorrection:
    """The factor to multiply one part with; `spread_fraction` is the interquartile range of the ratios / median."""

    part: str
    factor: float
    is_clipped: bool
    num_runs: int
    spread_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Corrections learnt on one machine, and median |error| of the step before and after.

    The errors after are of runs left out of the fit one at a time; None with fewer than two runs.
    """

    machine_name: str
    num_runs: int
    parts: tuple[PartCorrection, ...]
    step_factor: float
    error_fraction_before: float
    error_fraction_after_step_factor: float | None
    error_fraction_after_part_factors: float | None

    @property
    def is_helpful(self) -> bool:
        """Whether a correction brings left-out runs closer to what was measured."""
        after = (self.error_fraction_after_step_factor, self.error_fraction_after_part_factors)
        return any(error is not None and error < self.error_fraction_before for error in after)


def calibrate(machine_name: str, rows: Sequence[Row]) -> Calibration | None:
    """The corrections that the judged runs of one machine suggest; None where there are none."""
    judged = [row for row in rows if row.is_judged]
    if not judged:
        return None
    return Calibration(
        machine_name=machine_name,
        num_runs=len(judged),
        parts=part_corrections(judged),
        step_factor=step_factor(judged),
        error_fraction_before=float(np.median([abs(row.error_fraction) for row in judged])),
        error_fraction_after_step_factor=leave_one_out(judged, _with_step_factor),
        error_fraction_after_part_factors=leave_one_out(judged, _with_part_factors),
    )


def step_factor(rows: Sequence[Row]) -> float:
    """Median of measured / predicted step time, bounded."""
    return _bounded(float(np.median([row.measured_seconds / row.predicted_seconds for row in rows])))


def part_corrections(rows: Sequence[Row]) -> tuple[PartCorrection, ...]:
    """One bounded correction per part that was predicted and observed in at least one run."""
    corrections = []
    for part in CALIBRATED_PARTS:
        ratios = _ratios(part, rows)
        if not ratios:
            continue
        lower, middle, upper = (float(value) for value in np.percentile(ratios, (25, 50, 75)))
        factor = _bounded(middle)
        corrections.append(
            PartCorrection(
                part=part,
                factor=factor,
                is_clipped=factor != middle,
                num_runs=len(ratios),
                spread_fraction=(upper - lower) / middle if middle else 0.0,
            )
        )
    return tuple(corrections)


def leave_one_out(rows: Sequence[Row], correct: Callable[[Sequence[Row], Row], float]) -> float | None:
    """Median |error| where each row is corrected by what the others teach; None with fewer than two rows."""
    if len(rows) < 2:
        return None
    errors = [
        abs(correct([*rows[:index], *rows[index + 1 :]], row) / row.measured_seconds - 1)
        for index, row in enumerate(rows)
    ]
    return float(np.median(errors))


def _with_step_factor(others: Sequence[Row], row: Row) -> float:
    return step_factor(others) * row.predicted_seconds


def _with_part_factors(others: Sequence[Row], row: Row) -> float:
    factors = {correction.part: correction.factor for correction in part_corrections(others)}
    change = sum((factors.get(part, 1.0) - 1) * row.comparable_seconds(part)[0] for part in CALIBRATED_PARTS)
    return row.predicted_seconds + change


def _ratios(part: str, rows: Sequence[Row]) -> list[float]:
    ratios = []
    for row in rows:
        predicted, measured = row.comparable_seconds(part)
        if measured is not None and predicted >= SMALLEST_SHARE * row.predicted_seconds:
            ratios.append(measured / predicted)
    return ratios


def _bounded(factor: float) -> float:
    return min(max(factor, LOWEST_FACTOR), HIGHEST_FACTOR)
