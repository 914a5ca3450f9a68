"""What is answered beside the table of a search: all of it as values, computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from planner.answers import Answers, SimulatedPlan
from planner.space.answers import Answer
from planner.space.questions import Reliability, cost_of, pareto, sensitivity, why_not
from planner.space.topology import axis_links
from planner.terminal.progress import OnProgress, pieces, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What is asked about a search; `price` is in dollars per device and hour, `why_not` degrees as tp=8,pp=4."""

    why_not: str | None = None
    sensitivity: bool = False
    tokens: float | None = None
    price: float | None = None
    reliability: Reliability = Reliability()
    trace_file: Path | None = None


def answers_to(answer: Answer, offers_all: bool, asked: Questions, on_progress: OnProgress = silent) -> Answers:
    """Links of the best plan and time against memory, which every search says, and what was asked.

    `offers_all` tells that plans which the executor cannot run are offered too.
    Raises: InputError for degrees or times that cannot be; EnvironmentFailure where the timeline cannot be written.
    """
    best, at = answer.file.candidates[0], answer.space.at
    playing, changing = pieces(on_progress, (1.0, 1.0))
    front = pareto(answer.space, offers_all)
    return replace(
        answer.file.answers,
        links=tuple(axis_links(best.plan, at)),
        pareto=front if len(front) > 1 else (),
        cost=None
        if asked.tokens is None
        else cost_of(at, best.prediction, asked.tokens, asked.price, asked.reliability),
        why_not=None if asked.why_not is None else why_not(answer, asked.why_not),
        simulated=() if asked.trace_file is None else tuple(_simulated(answer, asked.trace_file, playing)),
        timeline="" if asked.trace_file is None else str(asked.trace_file),
        sensitivity=tuple(sensitivity(answer, changing)) if asked.sensitivity else (),
    )


def _simulated(answer: Answer, path: Path, on_progress: OnProgress) -> Iterator[SimulatedPlan]:
    """The plans of the table by event simulation; the timeline of the best is written."""
    from planner.simulate.perfetto import write_trace
    from planner.simulate.step import simulate
    from planner.space.to_events import step_work

    every = zip(answer.places, answer.file.candidates, strict=True)
    shown = [(place, candidate) for place, candidate in every if not candidate.folded_into]
    count = len(shown)
    for number, (place, candidate) in enumerate(shown):
        on_progress(number / count, f"simulating plan {number + 1} of {count}")
        played = simulate(step_work(answer.space, place))
        off = played.step_seconds / candidate.prediction.step_seconds - 1
        yield SimulatedPlan(plan=candidate.plan.id, step_seconds=played.step_seconds, off_fraction=off)
        if number == 0:
            write_trace(path, played, candidate.plan.id)
