"""Exact replay of a pipeline: every stage performs its list of steps as soon as what a step needs has arrived."""

from __future__ import annotations

from collections.abc import Sequence

from planner.prediction import Span
from planner.schedules import Step, schedule
from profiles.errors import PlanError


def replay(
    schedule_name: str,
    forward_seconds: Sequence[float],
    backward_seconds: Sequence[float],
    message_seconds: float,
    num_microbatches: int,
) -> tuple[float, tuple[Span, ...]]:
    """Seconds until the last stage is done, and one span per step.

    Model: a forward waits for the previous stage's and a message, a backward for the next stage's and a message; a
    stage does one step at a time, in the order of the schedule. Shapes: one forward and backward time per stage.
    Ignores: that messages may share a link. Raises: PlanError where the steps wait for each other.
    """
    num_stages = len(forward_seconds)
    rules = schedule(schedule_name)
    waiting = [list(rules.steps(stage, num_stages, num_microbatches))[::-1] for stage in range(num_stages)]
    clock = [0.0] * num_stages
    done: dict[tuple[str, int, int], float] = {}
    spans = []
    progress = True
    while progress:
        progress = False
        for stage, steps in enumerate(waiting):
            while steps and (ready := _ready(steps[-1], stage, num_stages, done, message_seconds)) is not None:
                step = steps.pop()
                start = max(clock[stage], ready)
                seconds = forward_seconds[stage] if step.action == "F" else backward_seconds[stage]
                clock[stage] = done[step.action, stage, step.microbatch] = start + seconds
                spans.append(
                    Span(
                        stage=stage,
                        action=step.action,
                        microbatch=step.microbatch,
                        start_seconds=start,
                        stop_seconds=clock[stage],
                    )
                )
                progress = True
    stuck = [f"stage {i} at {left[-1].action}{left[-1].microbatch}" for i, left in enumerate(waiting) if left]
    if stuck:
        raise PlanError(f"schedule {schedule_name} waits for itself: {', '.join(stuck)}")
    return max(clock), tuple(spans)


def _ready(
    step: Step, stage: int, num_stages: int, done: dict[tuple[str, int, int], float], message_seconds: float
) -> float | None:
    """When the input of `step` is there, or None while it has not been made."""
    if step.action == "F":
        source = None if stage == 0 else ("F", stage - 1, step.microbatch)
    elif stage == num_stages - 1:
        return done.get(("F", stage, step.microbatch))
    else:
        source = ("B", stage + 1, step.microbatch)
    if source is None:
        return 0.0
    return done[source] + message_seconds if source in done else None
