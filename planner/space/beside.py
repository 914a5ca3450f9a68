"""What is answered beside the table of a search: all of it as values, computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from planner.answers import Answers, Cost, SimulatedPlan
from planner.prediction import Prediction
from planner.purchase.bill import cost_of, price_of
from planner.purchase.terms import Terms, usual_terms
from planner.space.answers import Answer
from planner.space.question import Setting
from planner.space.questions import pareto, sensitivity, why_not
from planner.space.topology import axis_links
from planner.terminal.progress import OnProgress, pieces, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What is asked about a search: `why_not` are degrees as tp=8,pp=4.

    What a training takes is asked of `tokens`, or of `samples` whatever their size, on `terms`, or the usual ones.
    """

    why_not: str | None = None
    sensitivity: bool = False
    tokens: float | None = None
    samples: float | None = None
    terms: Terms | None = None
    trace_file: Path | None = None


def answers_to(
    answer: Answer, offers_all: bool, asked: Questions, on_progress: OnProgress = silent, cluster: str = ""
) -> Answers:
    """Links of the best plan and time against memory, which every search says, and what was asked.

    `offers_all` tells that plans which the executor cannot run are offered too; `cluster` is the one asked about.
    Raises: InputError for degrees or times that cannot be; EnvironmentFailure where the timeline cannot be written.
    """
    best, at = answer.file.candidates[0], answer.space.at
    playing, changing = pieces(on_progress, (1.0, 1.0))
    front = pareto(answer.space, offers_all)
    cost, spot_cost = _costs(at, best.prediction, asked, cluster)
    return replace(
        answer.file.answers,
        links=tuple(axis_links(best.plan, at)),
        pareto=front if len(front) > 1 else (),
        cost=cost,
        spot_cost=spot_cost,
        why_not=None if asked.why_not is None else why_not(answer, asked.why_not, offers_all),
        simulated=() if asked.trace_file is None else tuple(_simulated(answer, asked.trace_file, playing)),
        timeline="" if asked.trace_file is None else str(asked.trace_file),
        sensitivity=tuple(sensitivity(answer, changing)) if asked.sensitivity else (),
    )


def tokens_of(at: Setting, asked: Questions) -> float | None:
    """The tokens that are asked about, those of the samples where they are counted; None where neither is."""
    return asked.tokens if asked.samples is None else asked.samples * at.sequence_length


def _costs(at: Setting, prediction: Prediction, asked: Questions, cluster: str) -> tuple[Cost | None, Cost | None]:
    """What a training takes, and on spot devices where they are asked about."""
    tokens, terms = tokens_of(at, asked), asked.terms or usual_terms()
    if tokens is None:
        return None, None
    cost = cost_of(at, prediction, tokens, terms, cluster=cluster)
    if price_of(at, terms, is_spot=True, cluster=cluster)[0] is None:
        return cost, None
    return cost, cost_of(at, prediction, tokens, terms, is_spot=True, cluster=cluster)


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
