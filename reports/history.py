"""How the errors of predictions went from run to run, where versions changed, and what trend there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from profiles.units import format_percent
from reports.comparison import Row, Source, rows_of
from reports.facts import versions_of
from reports.outcomes import Job, job_of

# With fewer runs even the steadiest fall is as likely by chance as one in twelve.
LEAST_RUNS = 5
CHANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One run file at its time: its rows, its versions by name, its machine by fingerprint, and its job."""

    started: datetime
    source: str
    model: str
    job: Job
    machine: str
    rows: tuple[Row, ...]
    versions: dict[str, str]

    @property
    def error_fraction(self) -> float | None:
        """The median error of judged step times, without sign; None where none is judged."""
        errors = [abs(row.error_fraction) for row in self.rows if row.is_judged]
        return float(np.median(errors)) if errors else None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionMark:
    """A time from which on versions are others: name, before, after."""

    started: datetime
    changed: tuple[tuple[str, str, str], ...]

    @property
    def words(self) -> str:
        """What changed."""
        return ", ".join(f"{name} {before} -> {after}" for name, before, after in self.changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """How the median error of a run went over the runs: where a line through them begins and ends.

    `slope_fraction` is what it rises by in a run (Theil and Sen's median slope), `chance` how often runs in a random
    order would be as steady (Kendall), None of too few.
    """

    num_runs: int
    first_fraction: float
    last_fraction: float
    slope_fraction: float
    chance: float | None

    @property
    def direction(self) -> str:
        """Falls, rises, or neither as far as so many runs tell."""
        if self.chance is None:
            return "unknown"
        if self.chance > CHANCE or self.slope_fraction == 0:
            return "none"
        return "falls" if self.slope_fraction < 0 else "rises"


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Runs in the order of time; `undated` are files whose time cannot be read."""

    moments: tuple[Moment, ...]
    marks: tuple[VersionMark, ...]
    undated: tuple[str, ...]

    @property
    def trend(self) -> Trend | None:
        """The trend of the median error; None below two judged runs."""
        errors = [moment.error_fraction for moment in self.moments]
        return _trend([error for error in errors if error is not None])

    @property
    def sentence(self) -> str:
        """The trend in one sentence."""
        trend = self.trend
        first, last = (self.moments[place].started.date().isoformat() for place in (0, -1))
        when = f"on {first}" if first == last else f"{first} to {last}"
        if trend is None:
            return f"Of {len(self.moments)} runs, {when}, fewer than two are judged, so errors have no trend."
        errors = f"{format_percent(trend.first_fraction)} to {format_percent(trend.last_fraction)}"
        text = f"Over {self._runs(trend.num_runs)}, {when}, the median error went from {errors}"
        points = f"{abs(trend.slope_fraction) * 100:.2g} points"
        told = {
            "unknown": "too few to tell a trend",
            "none": "no trend beyond chance",
            "falls": f"it falls, by {points} a run",
            "rises": f"it rises, by {points} a run",
        }
        return f"{text}: {told[trend.direction]}."

    def _runs(self, count: int) -> str:
        """So many runs, and of how many jobs and machines where these are several."""
        jobs = len({moment.job for moment in self.moments})
        machines = len({moment.machine for moment in self.moments})
        of = f" of {jobs} jobs" if jobs > 1 else ""
        return f"{count} judged runs{of}{f' on {machines} machines' if machines > 1 else ''}"

    def to_json(self) -> dict[str, Any]:
        """Every point, mark and the trend in JSON types."""
        trend = self.trend
        return {
            "runs": [
                {
                    "started": moment.started.isoformat(),
                    "source": moment.source,
                    "model": moment.model,
                    "num_ranks": moment.job.num_ranks,
                    "global_batch_size": moment.job.global_batch_size,
                    "sequence_length": moment.job.sequence_length,
                    "machine_fingerprint": moment.machine,
                    "versions": moment.versions,
                    "error_fraction": moment.error_fraction,
                    "plans": [
                        {
                            "plan_id": row.plan_id,
                            "is_judged": row.is_judged,
                            "error_fraction": row.error_fraction,
                            "memory_error_fraction": row.memory_error_fraction,
                        }
                        for row in moment.rows
                    ],
                }
                for moment in self.moments
            ],
            "version_changes": [
                {
                    "started": mark.started.isoformat(),
                    "changed": [{"name": name, "before": old, "after": new} for name, old, new in mark.changed],
                }
                for mark in self.marks
            ],
            "trend": None if trend is None else {**asdict(trend), "direction": trend.direction},
            "sentence": self.sentence,
            "undated": list(self.undated),
        }


def history_of(sources: Sequence[Source]) -> History | None:
    """The history of two or more runs at different times; None where there is none.

    Raises: ArtifactError where a plan has no usable steps.
    """
    moments, undated, seen = [], [], set()
    for source in sources:
        # A page and the file that it was made of show the same run.
        run = source.file.environment.started, tuple(run.measurement.step_seconds for run in source.file.runs)
        if run in seen:
            continue
        seen.add(run)
        started = time_of(source.file.environment.started)
        if started is None:
            undated.append(source.name)
            continue
        file = source.file
        moments.append(
            Moment(
                started=started,
                source=source.name,
                model=file.model_name,
                job=job_of(file),
                machine=file.environment.fingerprint,
                rows=rows_of(source),
                versions=versions_of(source),
            )
        )
    if len({moment.started for moment in moments}) < 2:
        return None
    moments.sort(key=lambda moment: moment.started)
    return History(moments=tuple(moments), marks=_marks(moments), undated=tuple(undated))


def in_order(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Sources in the order of time, those without one first."""
    earliest = datetime.min.replace(tzinfo=UTC)
    return tuple(sorted(sources, key=lambda source: time_of(source.file.environment.started) or earliest))


def time_of(text: str) -> datetime | None:
    """A time as run files write it, in UTC where it does not say where; None of what is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _marks(moments: Sequence[Moment]) -> tuple[VersionMark, ...]:
    """Where a version differs from the last that was known; what is not written down changes nothing."""
    marks, known = [], dict(moments[0].versions)
    for moment in moments[1:]:
        changed = tuple(
            (name, known[name], value)
            for name, value in moment.versions.items()
            if name in known and known[name] != value
        )
        if changed:
            marks.append(VersionMark(started=moment.started, changed=changed))
        known |= moment.versions
    return tuple(marks)


def _trend(errors: Sequence[float]) -> Trend | None:
    if len(errors) < 2:
        return None
    from scipy.stats import kendalltau, theilslopes

    order = np.arange(len(errors))
    has_order = len(errors) >= LEAST_RUNS and len(set(errors)) > 1
    chance = float(kendalltau(order, errors).pvalue) if has_order else 1.0
    return Trend(
        num_runs=len(errors),
        first_fraction=errors[0],
        last_fraction=errors[-1],
        slope_fraction=float(theilslopes(errors, order)[0]),
        chance=chance if len(errors) >= LEAST_RUNS else None,
    )
