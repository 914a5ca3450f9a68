"""The timeline of a step: what a span is, and how much of the pipeline stands idle. Torch-free and plot-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from planner.plans import Plan, stages_of
from planner.prediction import Span

PREDICTED, MEASURED = "predicted", "measured"
SpanKind = Literal["forward", "backward", "communication", "codec", "optimizer"]
SPAN_KINDS: tuple[SpanKind, ...] = ("forward", "backward", "communication", "codec", "optimizer")
KINDS_BY_ACTION: dict[str, SpanKind] = {
    "F": "forward",
    "B": "backward",
    # The halves of a split backward pass: gradients of inputs and of weights.
    "I": "backward",
    "W": "backward",
    "codec": "codec",
    "optimizer": "optimizer",
}


def kind_of_action(action: str) -> SpanKind:
    """What an action is; the name of a collective is communication."""
    return KINDS_BY_ACTION.get(action, "communication")


def bubble_fraction(spans: Sequence[Span], plan: Plan | None = None) -> float | None:
    """Share of the ranks' time between the first forward and the last backward in which they do neither.

    A rank has the stages that `plan` gives it, or one. None with fewer than two ranks, where there is no pipeline.
    """
    compute = [span for span in spans if kind_of_action(span.action) in ("forward", "backward")]
    owners = {} if plan is None else {s: rank for rank in range(plan.pipeline_parallel) for s in stages_of(plan, rank)}
    by_rank: dict[int, list[tuple[float, float]]] = {}
    for span in compute:
        times = by_rank.setdefault(owners.get(span.stage, span.stage), [])
        times.append((span.start_seconds, span.stop_seconds))
    if len(by_rank) < 2:
        return None
    window = max(span.stop_seconds for span in compute) - min(span.start_seconds for span in compute)
    if window <= 0:
        return None
    return 1 - sum(map(busy_seconds, by_rank.values())) / (len(by_rank) * window)


def busy_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Seconds covered by at least one interval (start, stop)."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
