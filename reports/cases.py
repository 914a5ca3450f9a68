"""One case per question asked of the planner: which plan it ranked first, which ran fastest, and what that gained.

A plan that ran several times in a case is one standing: its timed steps are pooled, so its quartiles hold the noise
between runs too. Where some runs are judged and others not, standings are of the former.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.plans import Plan
from profiles.errors import ArtifactError
from reports.comparison import Quartiles, Row, Source, quartiles, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One plan of a case, all its runs together: the lowest rank it had, predicted and pooled measured steps."""

    plan: Plan
    rank: int
    is_baseline: bool
    predicted_seconds: float
    measured: Quartiles
    run_medians_seconds: tuple[float, ...]

    @property
    def repeat_spread_fraction(self) -> float | None:
        """Range of the medians of repeated runs over their middle; None for a single run."""
        medians = self.run_medians_seconds
        return (max(medians) - min(medians)) / float(np.median(medians)) if len(medians) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Runs that answer one question: same model, machine, ranks, batch and sequence length."""

    name: str
    rows: tuple[Row, ...]
    standings: tuple[Standing, ...] = field(repr=False)

    @property
    def is_judged(self) -> bool:
        """Whether timings of this case mean anything."""
        return bool(self.judged_rows)

    @property
    def judged_rows(self) -> tuple[Row, ...]:
        """The rows whose timings mean anything."""
        return tuple(row for row in self.rows if row.is_judged)

    @property
    def chosen(self) -> Standing:
        """The plan that the planner ranked first among those that ran."""
        return min(self.standings, key=lambda standing: (standing.rank, standing.predicted_seconds))

    @property
    def fastest(self) -> Standing:
        """The plan with the lowest measured median."""
        return min(self.standings, key=lambda standing: standing.measured.median_seconds)

    @property
    def baseline(self) -> Standing | None:
        """Plain data parallel, where it ran."""
        return next((standing for standing in self.standings if standing.is_baseline), None)

    @property
    def top1_regret_fraction(self) -> float:
        """How much slower the first choice ran than the fastest plan."""
        return self.chosen.measured.median_seconds / self.fastest.measured.median_seconds - 1

    @property
    def is_choice_within_noise(self) -> bool:
        """Whether the interquartile ranges of the first choice and of the fastest plan touch."""
        return self.chosen.measured.lower_seconds <= self.fastest.measured.upper_seconds

    @property
    def measured_speedup(self) -> float | None:
        """Measured step time of the baseline over that of the first choice."""
        baseline = self.baseline
        return None if baseline is None else baseline.measured.median_seconds / self.chosen.measured.median_seconds

    @property
    def predicted_speedup(self) -> float | None:
        """Predicted step time of the baseline over that of the first choice."""
        baseline = self.baseline
        return None if baseline is None else baseline.predicted_seconds / self.chosen.predicted_seconds

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's correlation of predicted and measured step times; None below two plans or without an order."""
        from scipy.stats import spearmanr

        predicted = [standing.predicted_seconds for standing in self.standings]
        measured = [standing.measured.median_seconds for standing in self.standings]
        if len(set(predicted)) < 2 or len(set(measured)) < 2:
            return None
        return float(spearmanr(predicted, measured).statistic)


def cases_of(sources: Sequence[Source]) -> tuple[Case, ...]:
    """The cases that the run files are about; files of the same question are taken together.

    Raises: ArtifactError where a file holds no runs.
    """
    names: dict[tuple[object, ...], str] = {}
    groups: dict[tuple[object, ...], list[Row]] = {}
    for source in sources:
        if not source.file.runs:
            raise ArtifactError(f"{source.name} holds no runs; make one with `execute plan.json -o FILE`")
        file = source.file
        names[source.question] = (
            f"{file.model_name} on {file.environment.num_devices} x {file.environment.device}, "
            f"batch {file.global_batch_size}, sequence {file.sequence_length}"
        )
        groups.setdefault(source.question, []).extend(rows_of(source))
    return tuple(
        Case(name=names[question], rows=tuple(rows), standings=_standings(rows)) for question, rows in groups.items()
    )


def _standings(rows: Sequence[Row]) -> tuple[Standing, ...]:
    by_plan: dict[Plan, list[Row]] = {}
    for row in [row for row in rows if row.is_judged] or [row for row in rows if row.is_as_priced] or rows:
        by_plan.setdefault(row.run.plan, []).append(row)
    return tuple(
        Standing(
            plan=plan,
            rank=min(row.run.rank for row in same),
            is_baseline=any(row.run.is_baseline for row in same),
            predicted_seconds=float(np.median([row.predicted_seconds for row in same])),
            measured=quartiles(seconds for row in same for seconds in row.run.measurement.step_seconds),
            run_medians_seconds=tuple(row.measured_seconds for row in same),
        )
        for plan, same in by_plan.items()
    )
