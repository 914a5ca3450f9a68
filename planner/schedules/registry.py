"""Pipeline schedules as lists of steps: replay times the list, the executor performs its order, the report draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.schedules.steps import (
    STAGES_OF_V,
    Ints,
    Order,
    Shape,
    Step,
    dualpipev,
    gpipe,
    interleaved,
    interleaved_zero_bubble,
    one_f_one_b,
    round_length,
    zbv,
)
from profiles.errors import PlanError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Schedule:
    """A name, the order of steps on a rank, and what the executor's rules and the cost model must know about it.

    `settled` gives fewer micro-batches with which a pipeline starts and ends in the same way; `title` says in a few
    words what it does.
    """

    name: str
    order: Callable[[Shape, int], Order]
    settled: Callable[[Shape], int]
    is_v: bool = False
    splits_backward: bool = False
    title: str = ""


def schedule(name: str) -> Schedule:
    """The schedule called `name`.

    Raises: UnknownNameError.
    """
    if name not in SCHEDULES:
        raise UnknownNameError("schedule", name, SCHEDULES)
    return SCHEDULES[name]


def rank_steps(shape: Shape, rank: int) -> tuple[Step, ...]:
    """What pipeline rank `rank` does, in order.

    Raises: PlanError where the schedule cannot have this shape.
    """
    return orders(shape)[rank].steps()


@lru_cache(maxsize=512)
def orders(shape: Shape) -> tuple[Order, ...]:
    """The steps of every rank.

    Raises: PlanError where the schedule cannot have this shape.
    """
    rules = schedule(shape.schedule)
    if min(shape.num_ranks, shape.virtual_stages, shape.num_microbatches) < 1:
        raise PlanError(f"schedule {shape.schedule}: ranks, stages and micro-batches must be at least 1")
    if rules.is_v and shape.virtual_stages != STAGES_OF_V:
        raise PlanError(f"schedule {shape.schedule} has two stages per rank, not {shape.virtual_stages}")
    if shape.schedule in ("gpipe", "1f1b") and shape.virtual_stages != 1:
        raise PlanError(f"schedule {shape.schedule} has one stage per rank, not {shape.virtual_stages}")
    return tuple(rules.order(shape, rank) for rank in range(shape.num_ranks))


def stage_ranks(shape: Shape) -> Ints:
    """The rank of each stage: dealt out in turns, or for a V there and back."""
    stage = np.arange(shape.num_stages)
    if schedule(shape.schedule).is_v:
        return np.minimum(stage, shape.num_stages - 1 - stage)
    return stage % shape.num_ranks


@lru_cache(maxsize=4096)
def held_at_peak(shape: Shape) -> tuple[tuple[int, ...], ...]:
    """Micro-batches that each stage of a rank holds when the rank holds most. Shapes: (rank, chunk).

    A forward keeps its activations until the backward, or where that is split until the weight gradients, are done.
    """
    rules = schedule(shape.schedule)
    if shape.schedule == "gpipe":
        return ((shape.num_microbatches,),) * shape.num_ranks
    short = Shape(shape.schedule, shape.num_ranks, shape.virtual_stages, rules.settled(shape))
    result = []
    for rank, order in enumerate(orders(short)):
        stages = np.flatnonzero(stage_ranks(short) == rank)
        change = np.array([1, -1, 0, -1])[order.action]
        held = np.cumsum(np.where(order.stage == stages[:, None], change, 0), axis=1)
        result.append(tuple(held[:, held.sum(axis=0).argmax()].tolist()))
    return tuple(result)


def in_flight(shape: Shape) -> tuple[int, ...]:
    """The most activations, each of one stage and micro-batch, that a rank holds at any time. Shapes: (rank,)."""
    return tuple(sum(held) for held in held_at_peak(shape))


def _settled_rounds(shape: Shape) -> int:
    length = round_length(shape)
    return length * min(shape.num_microbatches // length, 4)


def _settled_count(shape: Shape) -> int:
    return min(shape.num_microbatches, 4 * shape.num_ranks)


SCHEDULES = {
    rules.name: rules
    for rules in (
        Schedule("gpipe", gpipe, _settled_count, title="all forwards, then all backwards"),
        Schedule("1f1b", one_f_one_b, _settled_count, title="forwards and backwards in turns, few of them in flight"),
        Schedule(
            "interleaved-1f1b",
            interleaved,
            _settled_rounds,
            title="1f1b with several stages on each rank, dealt out in turns",
        ),
        Schedule(
            "interleaved-zb",
            interleaved_zero_bubble,
            _settled_rounds,
            splits_backward=True,
            title="interleaved-1f1b with weight gradients put off to fill the bubble (zero bubble, ZB-H1)",
        ),
        Schedule(
            "zbv",
            zbv,
            _settled_count,
            is_v=True,
            splits_backward=True,
            title="two stages on each rank, there and back, weight gradients put off (zero bubble, ZB-V)",
        ),
        Schedule(
            "dualpipev",
            dualpipev,
            _settled_count,
            is_v=True,
            splits_backward=True,
            title="two stages on each rank, there and back, forwards and backwards in pairs (DualPipe, folded)",
        ),
    )
}
