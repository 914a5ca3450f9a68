"""What changed between two runs, or two groups of runs, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reports.comparison import Source
from reports.facts import FactChange, FactName, fact_changes
from reports.history import time_of
from reports.outcomes import Outcome, Standing, outcomes_of, standings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Runs that are one side of a comparison, in the order of time, and the name they were given by."""

    name: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstChoice:
    """The plan that was ranked first of those that ran a job, before and after."""

    job: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Facts that differ, plans that both sides ran, and those that one alone did.

    `unrecorded` are facts that one side's files do not tell.
    """

    before: Side
    after: Side
    facts: tuple[FactChange, ...]
    unrecorded: tuple[FactName, ...]
    outcomes: tuple[Outcome, ...]
    first_choices: tuple[FirstChoice, ...]
    only_before: tuple[Standing, ...]
    only_after: tuple[Standing, ...]

    @property
    def same_plans(self) -> tuple[Outcome, ...]:
        """The plans that both sides ran."""
        return tuple(outcome for outcome in self.outcomes if outcome.is_same_plan)

    @property
    def is_nothing(self) -> bool:
        """Whether what ran, where, with what and how it was predicted is the same, as far as it was written down."""
        are_alike = all(
            outcome.is_time_predicted_alike and outcome.is_memory_predicted_alike and outcome.words == ((), ())
            for outcome in self.outcomes
        )
        return are_alike and not (self.facts or self.only_before or self.only_after)

    @property
    def is_reversed(self) -> bool:
        """Whether all that counts as before ran later than all that counts as after."""
        before, after = (
            [time for source in side.sources if (time := time_of(source.file.environment.started))]
            for side in (self.before, self.after)
        )
        return bool(before and after and min(before) > max(after))

    def to_json(self) -> dict[str, Any]:
        """All of it in JSON types."""
        return {
            "before": {"name": self.before.name, "files": [source.name for source in self.before.sources]},
            "after": {"name": self.after.name, "files": [source.name for source in self.after.sources]},
            "is_nothing": self.is_nothing,
            "facts": [asdict(change) for change in self.facts],
            "not_recorded": [name._asdict() for name in self.unrecorded],
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
            "first_choices": [asdict(choice) for choice in self.first_choices],
            "only_before": [standing.to_json() for standing in self.only_before],
            "only_after": [standing.to_json() for standing in self.only_after],
        }


def are_alike(before: Side, after: Side) -> bool:
    """Whether two sides are about the same thing, so that what lies between them is of interest: a common model."""
    names = [{source.file.model_name for source in side.sources} for side in (before, after)]
    return bool(names[0] & names[1])


def changes_of(before: Side, after: Side) -> Changes:
    """Hold one side against the other.

    Raises: ArtifactError where a plan has no usable steps.
    """
    first, second = standings_of(before.sources), standings_of(after.sources)
    facts, unrecorded = fact_changes(before.sources, after.sources)
    outcomes = outcomes_of(first, second)
    held = {outcome.before.ran for outcome in outcomes}, {outcome.after.ran for outcome in outcomes}
    return Changes(
        before=before,
        after=after,
        facts=facts,
        unrecorded=unrecorded,
        outcomes=outcomes,
        first_choices=_first_choices(tuple(first.values()), tuple(second.values())),
        only_before=tuple(standing for ran, standing in first.items() if ran not in held[0]),
        only_after=tuple(standing for ran, standing in second.items() if ran not in held[1]),
    )


def _first_choices(before: Sequence[Standing], after: Sequence[Standing]) -> tuple[FirstChoice, ...]:
    """Jobs of both sides whose first choice is another; where several plans ran on both."""
    found = []
    for job in dict.fromkeys(standing.ran.job for standing in before):
        ours, theirs = ([one for one in side if one.ran.job == job] for side in (before, after))
        if len(ours) < 2 or len(theirs) < 2:
            continue
        one, other = (min(side, key=lambda standing: standing.rank) for side in (ours, theirs))
        if one.ran.plan_id != other.ran.plan_id:
            found.append(FirstChoice(job=one.job_words, before=one.ran.plan_id, after=other.ran.plan_id))
    return tuple(found)
