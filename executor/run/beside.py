"""Engines beside one another: the step of each over this program's, of one plan whose runs took turns. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from executor.run.measurement import PlanRun

# Steps of a run before the next one has its turn.
BLOCK_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A step of another engine over one of this program's: the median of all turns, the least and the most of one."""

    plan_id: str
    engine: str
    median: float
    least: float
    most: float
    num_turns: int

    def __str__(self) -> str:
        turns = f"from {self.least:.2f} to {self.most:.2f} in {self.num_turns} turns of at most {BLOCK_STEPS} steps"
        turns = "in one turn" if self.num_turns == 1 else turns
        return f"{self.engine} takes {self.median:.2f} times Trainwright's step, {turns}: {self.plan_id}"


def ratios(runs: Sequence[PlanRun]) -> Iterator[Ratio]:
    """The ratio of every run by another engine whose plan this program ran as well."""
    own = {run.plan.id: _turns(run) for run in runs if run.is_own}
    for run in runs:
        if run.is_own or run.plan.id not in own:
            continue
        found = [theirs / ours for theirs, ours in zip(_turns(run), own[run.plan.id], strict=False)]
        yield Ratio(
            plan_id=run.plan.id,
            engine=run.engine_words,
            median=statistics.median(found),
            least=min(found),
            most=max(found),
            num_turns=len(found),
        )


def _turns(run: PlanRun) -> list[float]:
    """The median step of each turn."""
    seconds = run.measurement.step_seconds
    return [statistics.median(seconds[start : start + BLOCK_STEPS]) for start in range(0, len(seconds), BLOCK_STEPS)]
