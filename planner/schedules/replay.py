"""Exact replay of a pipeline: every rank performs its list of steps as soon as what a step needs has arrived.

The steps of a shape are put in levels once: a step's level is above that of all it waits for. Then a level of all plans
is a handful of array operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.prediction import Span
from planner.schedules.registry import orders, stage_ranks
from planner.schedules.steps import B, F, I, Shape, W
from profiles.errors import PlanError

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
# Plans that are replayed together: enough to amortise the calls, few enough for the cache.
CHUNK = 256
# The executor notes input gradients apart from weight gradients as a backward (executor/observe/events.py).
NOTED = {F: "F", B: "B", I: "B", W: "W"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSeconds:
    """Seconds of one micro-batch on each stage. Shapes: (stage, plan).

    `backward` is the whole backward pass; `weight` is the part of it that makes weight gradients, which only schedules
    that split it look at. `message` is one activation, or one gradient, between a stage and the next; the last row is
    not used, and neighbours on one rank need none.
    """

    forward: Array
    backward: Array
    weight: Array
    message: Array

    def take(self, plans: slice | Indices) -> PipelineSeconds:
        """Some of the plans."""
        return PipelineSeconds(
            forward=self.forward[:, plans],
            backward=self.backward[:, plans],
            weight=self.weight[:, plans],
            message=self.message[:, plans],
        )

    def by_action(self) -> Array:
        """Seconds of each kind of step. Shapes: (action * stage, plan), actions as in orders.ACTIONS."""
        return np.concatenate([self.forward, self.backward, self.backward - self.weight, self.weight])


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Shapes: `step_seconds` (plan,), until the last rank is done; `busy_seconds` (rank, plan)."""

    step_seconds: Array
    busy_seconds: Array


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StepGraph:
    """The steps of all ranks by level, and what each waits for besides its rank. Shapes: all but the bounds (step,).

    `kind` is action * stages + stage, a row of `by_action`. `previous` and `source` are the positions of the rank's
    step before and of the step whose message is needed, and `link` is the row of messages; where there is none, they
    point one past the last.
    """

    rank: Indices
    kind: Indices
    microbatch: Indices
    previous: Indices
    source: Indices
    link: Indices
    level_bounds: tuple[int, ...]


def replay_plans(shape: Shape, seconds: PipelineSeconds) -> Replayed:
    """Step time and busy time of many plans that share a pipeline's shape.

    Model: a forward waits for the previous stage's and a message, a backward for the next stage's and a message; a rank
    does one step at a time, in the order of the schedule, also the two of a pair, as torch does.
    Ignores: that messages may share a link, and that a sender may have to wait. Raises: PlanError.
    """
    graph = step_graph(shape)
    num_plans = seconds.forward.shape[1]
    step = np.empty(num_plans)
    busy = np.empty((shape.num_ranks, num_plans))
    # One buffer for all chunks: fresh memory costs as much as the arithmetic.
    buffer = np.empty((len(graph.kind) + 1) * min(CHUNK, num_plans))
    for start in range(0, num_plans, CHUNK):
        plans = slice(start, min(start + CHUNK, num_plans))
        part = seconds.take(plans)
        step[plans] = _stops(graph, part, buffer)[:-1].max(axis=0)
        busy[:, plans] = busy_seconds(shape, part)
    return Replayed(step_seconds=step, busy_seconds=busy)


def replay_spans(shape: Shape, seconds: PipelineSeconds) -> tuple[float, tuple[Span, ...]]:
    """Seconds of the step of a single plan, and one span per step.

    Raises: PlanError.
    """
    graph = step_graph(shape)
    stops = _stops(graph, seconds)[:-1, 0]
    durations = seconds.by_action()[graph.kind, 0]
    action, stage = np.divmod(graph.kind, shape.num_stages)
    columns: list[list[Any]] = [
        column.tolist() for column in (stage, action, graph.microbatch, stops - durations, stops)
    ]
    spans = tuple(
        Span(stage=s, action=NOTED[a], microbatch=m, start_seconds=start, stop_seconds=stop)
        for s, a, m, start, stop in zip(*columns, strict=True)
    )
    return float(stops.max()), spans


def replay(
    schedule_name: str,
    forward_seconds: Sequence[float],
    backward_seconds: Sequence[float],
    message_seconds: float,
    num_microbatches: int,
) -> tuple[float, tuple[Span, ...]]:
    """The same for a schedule of one stage per rank that does not split its backward, and equal messages."""
    shape = Shape(schedule_name, len(forward_seconds), 1, num_microbatches)
    forward, backward = np.array(forward_seconds)[:, None], np.array(backward_seconds)[:, None]
    seconds = PipelineSeconds(
        forward=forward,
        backward=backward,
        weight=np.zeros_like(forward),
        message=np.full_like(forward, message_seconds),
    )
    return replay_spans(shape, seconds)


def busy_seconds(shape: Shape, seconds: PipelineSeconds) -> Array:
    """Seconds that each rank computes. Shapes: (rank, plan)."""
    owns = np.arange(shape.num_ranks)[:, None] == stage_ranks(shape)
    return np.asarray(shape.num_microbatches * (owns @ (seconds.forward + seconds.backward)))


def _stops(graph: StepGraph, seconds: PipelineSeconds, buffer: Array | None = None) -> Array:
    """When each step of `graph` is done; the last row is the start of the step. Shapes: (step + 1, plan)."""
    num_plans = seconds.forward.shape[1]
    durations = seconds.by_action()
    messages = np.concatenate([seconds.message, np.zeros((1, num_plans))])
    size = (len(graph.kind) + 1, num_plans)
    stops = np.empty(size) if buffer is None else buffer[: size[0] * size[1]].reshape(size)
    stops[-1] = 0.0
    widest = max(np.diff(graph.level_bounds))
    ready, scratch = np.empty((2, widest, num_plans))
    for start, stop in zip(graph.level_bounds, graph.level_bounds[1:], strict=False):
        level, count = slice(start, stop), stop - start
        arrived, before, own = ready[:count], scratch[:count], stops[start:stop]
        stops.take(graph.source[level], axis=0, out=arrived, mode="clip")
        messages.take(graph.link[level], axis=0, out=before, mode="clip")
        arrived += before
        stops.take(graph.previous[level], axis=0, out=before, mode="clip")
        np.maximum(arrived, before, out=arrived)
        durations.take(graph.kind[level], axis=0, out=before, mode="clip")
        np.add(arrived, before, out=own)
    return stops


@lru_cache(maxsize=256)
def step_graph(shape: Shape) -> StepGraph:
    """The steps of `shape` in levels.

    Raises: PlanError where the steps wait for each other, or the schedule cannot have this shape.
    """
    steps = orders(shape)
    lengths = np.array([len(order) for order in steps])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    action, stage, microbatch = (
        np.concatenate([getattr(order, name) for order in steps]) for name in ("action", "stage", "microbatch")
    )
    rank = np.repeat(np.arange(shape.num_ranks), lengths)
    source, link = step_sources(shape, action, stage, microbatch)
    previous = np.where(np.arange(len(rank)) == offsets[rank], len(rank), np.arange(len(rank)) - 1)
    level = step_levels(shape, offsets, source)
    place = np.argsort(level, kind="stable")
    position = np.empty(len(rank) + 1, dtype=np.intp)
    position[place], position[-1] = np.arange(len(rank)), len(rank)
    return StepGraph(
        rank=rank[place],
        kind=(action * shape.num_stages + stage)[place],
        microbatch=microbatch[place],
        previous=position[previous[place]],
        source=position[source[place]],
        link=link[place],
        level_bounds=(0, *np.cumsum(np.bincount(level)).tolist()),
    )


def step_sources(shape: Shape, action: Indices, stage: Indices, microbatch: Indices) -> tuple[Indices, Indices]:
    """For each step the step whose output it needs, and which stage's message brings it; else one past the last.

    The last stage's backward needs its own forward; weight gradients need what their rank did before them anyway.
    """
    nothing, no_message = len(action), shape.num_stages
    forward, backward = np.full((2, shape.num_stages, shape.num_microbatches), nothing)
    number = np.arange(nothing)
    is_forward, is_backward = action == F, (action == B) | (action == I)
    forward[stage[is_forward], microbatch[is_forward]] = number[is_forward]
    backward[stage[is_backward], microbatch[is_backward]] = number[is_backward]
    source, link = np.full(nothing, nothing), np.full(nothing, no_message)
    below, above = is_forward & (stage > 0), is_backward & (stage < shape.num_stages - 1)
    source[below] = forward[stage[below] - 1, microbatch[below]]
    source[above] = backward[stage[above] + 1, microbatch[above]]
    turn = is_backward & (stage == shape.num_stages - 1)
    source[turn] = forward[stage[turn], microbatch[turn]]
    link[below], link[above] = stage[below] - 1, stage[above]
    ranks = stage_ranks(shape)
    at_home = np.append(ranks[:-1] == ranks[1:], [True, True])
    link[at_home[link]] = no_message
    return source, link


def step_levels(shape: Shape, offsets: Indices, source: Indices) -> Indices:
    """The level of each step, by letting every rank do a step per tick where its source is of an earlier tick."""
    num_steps = len(source)
    level = np.full(num_steps + 1, -1)
    unreached = num_steps + 1
    level[:-1] = unreached
    # One more step that is never ready, for ranks that are done.
    needs = np.append(source, 0)
    position, ends = offsets[:-1].copy(), offsets[1:]
    tick, left = 0, num_steps
    while left:
        ready = np.flatnonzero((position < ends) & (level[needs[np.minimum(position, num_steps)]] < tick))
        if len(ready) == 0:
            waiting = {
                int(rank): orders(shape)[rank].steps()[position[rank] - offsets[rank]]
                for rank in np.flatnonzero(position < ends)
            }
            names = ", ".join(
                f"rank {rank} at {s.action}{s.microbatch} of stage {s.stage}" for rank, s in waiting.items()
            )
            raise PlanError(f"schedule {shape.schedule} deadlocks: {names}")
        level[position[ready]] = tick
        position[ready] += 1
        left -= len(ready)
        tick += 1
    return level[:-1]
