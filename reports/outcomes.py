"""One plan of one job before and after: what it was predicted to take, what it took, and by how much both moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from executor.run.measurement import RunFile
from planner.parts import PART_NAMES
from planner.plans import Plan
from reports.comparison import Quartiles, Row, Source, quartiles, rows_of

# Predictions of one law differ by rounding alone, which is smaller than this.
ROUNDING_FRACTION = 1e-6


class Job(NamedTuple):
    """What must be equal for two runs to be of the same job: workload, ranks, global batch, size of a sample."""

    workload: str
    num_ranks: int
    global_batch_size: int
    sequence_length: int


class Ran(NamedTuple):
    """What ran: a job, a plan's id, and the engine that carried it out, without its version."""

    job: Job
    plan_id: str
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One plan of one side, all of its runs together; of these the judged ones where there are any.

    `job_words` name the job; measured steps are pooled, predictions are medians.
    """

    ran: Ran
    job_words: str
    rows: tuple[Row, ...]
    measured: Quartiles

    @property
    def label(self) -> str:
        """The plan's id, and the engine where that was not this program."""
        return self.rows[-1].plan_id

    @property
    def plan(self) -> Plan:
        """The plan, as its last run has it."""
        return self.rows[-1].run.plan

    @property
    def is_judged(self) -> bool:
        """Whether its times mean anything."""
        return self.rows[0].is_judged

    @property
    def rank(self) -> int:
        """The best place that it had in the planner's order."""
        return min(row.run.rank for row in self.rows)

    @property
    def predicted_seconds(self) -> float:
        """Predicted seconds of a step."""
        return _middle(row.predicted_seconds for row in self.rows)

    @property
    def measured_seconds(self) -> float:
        """Median measured seconds of a step."""
        return self.measured.median_seconds

    @property
    def error_fraction(self) -> float:
        """Signed error of the step time: predicted / measured - 1."""
        return self.predicted_seconds / self.measured_seconds - 1

    @property
    def predicted_peak_bytes(self) -> float:
        """Predicted peak of the fullest rank, in bytes."""
        return _middle(row.predicted_peak_bytes for row in self.rows)

    @property
    def measured_peak_bytes(self) -> float | None:
        """Measured peak of the fullest rank, in bytes; None where nobody could observe it."""
        peaks = [row.measured_peak_bytes for row in self.rows if row.measured_peak_bytes is not None]
        return _middle(peaks) if peaks else None

    @property
    def memory_error_fraction(self) -> float | None:
        """Signed error of the peak: predicted / measured - 1."""
        measured = self.measured_peak_bytes
        return None if measured is None else self.predicted_peak_bytes / measured - 1

    def part_seconds(self, part: str) -> float:
        """Predicted seconds of one part of the step."""
        return _middle(row.part_seconds(part)[0] for row in self.rows)

    @property
    def losses(self) -> tuple[str, ...]:
        """What the checks of its losses said."""
        return tuple(dict.fromkeys(row.run.measurement.loss_check.status for row in self.rows))

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What its predictions assume."""
        return tuple(dict.fromkeys(text for row in self.rows for text in row.run.prediction.assumptions))

    def to_json(self) -> dict[str, Any]:
        """Every number of it."""
        return {
            "plan_id": self.ran.plan_id,
            "engine": self.ran.engine,
            "num_runs": len(self.rows),
            "rank": self.rank,
            "is_judged": self.is_judged,
            "predicted_seconds": self.predicted_seconds,
            "measured_seconds": self.measured_seconds,
            "measured_lower_quartile_seconds": self.measured.lower_seconds,
            "measured_upper_quartile_seconds": self.measured.upper_seconds,
            "error_fraction": self.error_fraction,
            "predicted_parts_seconds": {part: self.part_seconds(part) for part in PART_NAMES},
            "predicted_peak_bytes": self.predicted_peak_bytes,
            "measured_peak_bytes": self.measured_peak_bytes,
            "memory_error_fraction": self.memory_error_fraction,
            "losses": list(self.losses),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A plan before and after; where the plan is another one, both ran the same job and nothing else did."""

    before: Standing
    after: Standing

    @property
    def is_same_plan(self) -> bool:
        """Whether the plan is the same, by its id."""
        return self.before.ran.plan_id == self.after.ran.plan_id

    @property
    def is_judged(self) -> bool:
        """Whether times of both mean anything."""
        return self.before.is_judged and self.after.is_judged

    @property
    def words(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The words of the plan that only one of the two has: those dropped, those added.

        Choices that an id does not tell, as where layers are cut, are words as well: `stage_bounds=0,4`.
        """
        first, second = self.before.ran.plan_id.split(), self.after.ran.plan_id.split()
        dropped = [word for word in first if word not in second]
        added = [word for word in second if word not in first]
        if self.is_same_plan:
            for field in fields(Plan):
                ours, theirs = (getattr(side.plan, field.name) for side in (self.before, self.after))
                if ours != theirs:
                    dropped.append(f"{field.name}={_shown(ours)}")
                    added.append(f"{field.name}={_shown(theirs)}")
        return tuple(dropped), tuple(added)

    @property
    def step_change_fraction(self) -> float:
        """By how much a step takes longer than before."""
        return self.after.measured_seconds / self.before.measured_seconds - 1

    @property
    def is_beyond_spread(self) -> bool:
        """Whether the middle halves of the steps lie apart."""
        one, other = self.before.measured, self.after.measured
        return one.upper_seconds < other.lower_seconds or other.upper_seconds < one.lower_seconds

    @property
    def predicted_change_fraction(self) -> float:
        """By how much a step is predicted to take longer than before."""
        return self.after.predicted_seconds / self.before.predicted_seconds - 1

    @property
    def part_changes_seconds(self) -> dict[str, float]:
        """By how much each part of a step is predicted to take longer than before."""
        return {part: self.after.part_seconds(part) - self.before.part_seconds(part) for part in PART_NAMES}

    @property
    def most_changed_part(self) -> str:
        """The part of the prediction that moved most."""
        changes = self.part_changes_seconds
        return max(changes, key=lambda part: abs(changes[part]))

    @property
    def is_time_predicted_alike(self) -> bool:
        """Whether the step and all of its parts are predicted as before, to rounding."""
        least = ROUNDING_FRACTION * self.before.predicted_seconds
        changes = (self.after.predicted_seconds - self.before.predicted_seconds, *self.part_changes_seconds.values())
        return all(abs(change) <= least for change in changes)

    @property
    def is_memory_predicted_alike(self) -> bool:
        """Whether the peak is predicted as before, to rounding."""
        before = self.before.predicted_peak_bytes
        return abs(self.after.predicted_peak_bytes - before) <= ROUNDING_FRACTION * before

    @property
    def memory_change_fraction(self) -> float | None:
        """By how much the measured peak is higher than before; None where either was not observed."""
        before, after = self.before.measured_peak_bytes, self.after.measured_peak_bytes
        return None if before is None or after is None else after / before - 1

    def to_json(self) -> dict[str, Any]:
        """Both sides and what lies between them."""
        dropped, added = self.words
        before, after = self.before.assumptions, self.after.assumptions
        return {
            "job": self.before.job_words,
            "is_same_plan": self.is_same_plan,
            "words_dropped": list(dropped),
            "words_added": list(added),
            "is_judged": self.is_judged,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "step_change_fraction": self.step_change_fraction,
            "is_beyond_spread": self.is_beyond_spread,
            "predicted_change_fraction": self.predicted_change_fraction,
            "is_prediction_same": self.is_time_predicted_alike and self.is_memory_predicted_alike,
            "predicted_part_changes_seconds": self.part_changes_seconds,
            "most_changed_part": None if self.is_time_predicted_alike else self.most_changed_part,
            "memory_change_fraction": self.memory_change_fraction,
            "assumptions_dropped": [text for text in before if text not in after],
            "assumptions_added": [text for text in after if text not in before],
        }


def job_of(file: RunFile) -> Job:
    """The job of a run file."""
    ranks = file.environment.num_devices
    return Job(file.workload.digest, ranks, file.global_batch_size, file.sequence_length)


def standings_of(sources: Iterable[Source]) -> dict[Ran, Standing]:
    """Every plan of every job that ran, in the order of the files and of rank.

    Raises: ArtifactError where a plan has no usable steps.
    """
    found: dict[Ran, list[Row]] = {}
    words: dict[Job, str] = {}
    for source in sources:
        job = job_of(source.file)
        batch = f"batch {job.global_batch_size} x {job.sequence_length}"
        words[job] = f"{source.file.model_name} on {job.num_ranks} ranks, {batch}"
        for row in rows_of(source):
            found.setdefault(Ran(job, row.run.plan.id, row.run.engine), []).append(row)
    return {ran: _standing(ran, words[ran.job], rows) for ran, rows in found.items()}


def _standing(ran: Ran, words: str, rows: Sequence[Row]) -> Standing:
    counted = [row for row in rows if row.is_judged] or rows
    steps = (seconds for row in counted for seconds in row.run.measurement.step_seconds)
    return Standing(ran=ran, job_words=words, rows=tuple(counted), measured=quartiles(steps))


def outcomes_of(before: dict[Ran, Standing], after: dict[Ran, Standing]) -> tuple[Outcome, ...]:
    """Plans that both sides ran; where of a job each ran one plan alone, these two, whatever they are."""
    pairs = [(ran, ran) for ran in before if ran in after]
    jobs = {ran.job for ran in before} - {ran.job for ran, _ in pairs}
    for job in (job for job in dict.fromkeys(ran.job for ran in before) if job in jobs):
        ours, theirs = ([ran for ran in side if ran.job == job] for side in (before, after))
        if len(ours) == len(theirs) == 1:
            pairs.append((ours[0], theirs[0]))
    return tuple(Outcome(before=before[one], after=after[other]) for one, other in pairs)


def median_of(outcomes: Sequence[Outcome], value: Callable[[Outcome], float]) -> float:
    """The median of a number of each of one or more outcomes."""
    return _middle(value(outcome) for outcome in outcomes)


def _middle(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
