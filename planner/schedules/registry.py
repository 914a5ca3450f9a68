"""Pipeline schedules, one record each with all that sets them apart; nothing else knows them by name.

Replay times a schedule's list of steps, the executor performs its order, the report draws it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.schedules import laws, traits
from planner.schedules.steps import (
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
from profiles.models.transformer import Flags

# The word of a plan without a pipeline; what is meant where nothing is said, and of several stages per rank.
NONE, USUAL, USUAL_OF_SEVERAL = "none", "1f1b", "interleaved-1f1b"


def _settled_count(shape: Shape) -> int:
    return min(shape.num_microbatches, 4 * shape.num_ranks)


def _settled_rounds(shape: Shape) -> int:
    length = round_length(shape)
    return length * min(shape.num_microbatches // length, 4)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A name, the order of steps on a rank, and all that rules, laws, search and executor must know about it.

    `settled` gives fewer micro-batches with which a pipeline starts and ends in the same way; `title` says in a few
    words what it does; `other_names` are those that tables of runs have for it. `stages` and `counts` are what it asks
    for. `splits_backward`: weight gradients are computed apart from input gradients; `waits`: and later, so that both
    gradients are kept until then. `forwards_first`: all forward passes of a step come before the first backward pass.
    `bubble_left`, `held` and `open_chunks` are its laws (planner/schedules/laws.py). `torch_class` carries it out, in
    torch.distributed.pipelining; it is empty where none does.
    """

    name: str
    order: Callable[[Shape, int], Order]
    settled: Callable[[Shape], int] = _settled_count
    title: str = ""
    other_names: tuple[str, ...] = ()
    stages: traits.Stages = traits.ONE_STAGE
    counts: traits.Counts = traits.ANY_COUNT
    splits_backward: bool = False
    waits: bool = False
    forwards_first: bool = False
    bubble_left: laws.BubbleLeft = laws.whole_bubble
    held: laws.Held = laws.held_in_turns
    open_chunks: laws.OpenChunks = laws.all_open
    torch_class: str = ""

    def period(self, shape: Shape) -> int:
        """Micro-batches after which what the ranks do is the same again."""
        return round_length(shape) if self.counts.in_rounds else shape.num_ranks


def schedule(name: str) -> Schedule:
    """The schedule called `name`, by any of its names.

    Raises: UnknownNameError.
    """
    if name in SCHEDULES:
        return SCHEDULES[name]
    known = _by_name()
    if name not in known:
        raise UnknownNameError("schedule", name, known)
    return known[name]


def schedule_of(name: str) -> Schedule:
    """The schedule of a plan that says `name`; where there is no pipeline the usual one, of a single stage.

    Raises: UnknownNameError.
    """
    return schedule(USUAL if name == NONE else name)


def plan_names() -> tuple[str, ...]:
    """What a plan may have for its schedule."""
    return (NONE, *SCHEDULES)


def torch_names() -> tuple[str, ...]:
    """The schedules that torch.distributed.pipelining carries out."""
    return tuple(name for name, rules in SCHEDULES.items() if rules.torch_class)


def published_names() -> tuple[str, ...]:
    """What a table of runs may have for its schedule."""
    return tuple(_by_name())


def has(names: NDArray[np.str_] | tuple[str, ...], trait: Callable[[Schedule], bool]) -> Flags:
    """Whether the schedule of each name has a trait; without a pipeline there is none. Shapes: as `names`."""
    return np.isin(names, [name for name, rules in _by_name().items() if trait(rules)])


def _by_name() -> dict[str, Schedule]:
    records = (*SCHEDULES.values(), *PUBLISHED.values())
    return {name: rules for rules in records for name in (rules.name, *rules.other_names)}


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
    if not rules.stages.allows(shape.virtual_stages):
        raise PlanError(f"schedule {shape.schedule} has {rules.stages.words}, not {shape.virtual_stages}")
    return tuple(rules.order(shape, rank) for rank in range(shape.num_ranks))


def stage_ranks(shape: Shape) -> Ints:
    """The rank of each stage: dealt out in turns, or for a V there and back."""
    stage = np.arange(shape.num_stages)
    if schedule(shape.schedule).stages.is_v:
        return np.minimum(stage, shape.num_stages - 1 - stage)
    return stage % shape.num_ranks


@lru_cache(maxsize=4096)
def held_at_peak(shape: Shape) -> tuple[tuple[int, ...], ...]:
    """Micro-batches that each stage of a rank holds when the rank holds most. Shapes: (rank, chunk).

    A forward keeps its activations until the backward, or where that is split until the weight gradients, are done.
    """
    rules = schedule(shape.schedule)
    if rules.forwards_first:
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


def _no_order(shape: Shape, rank: int) -> Order:
    raise PlanError(f"schedule {shape.schedule} is known from published runs only, so its steps cannot be listed")


# Those that are planned, in the order in which the search takes them.
SCHEDULES = {
    rules.name: rules
    for rules in (
        Schedule(
            "gpipe",
            gpipe,
            title="all forwards, then all backwards",
            forwards_first=True,
            held=laws.held_by_gpipe,
            torch_class="ScheduleGPipe",
        ),
        Schedule(
            "1f1b",
            one_f_one_b,
            title="forwards and backwards in turns, few of them in flight",
            counts=traits.ONE_PER_STAGE,
            torch_class="Schedule1F1B",
        ),
        Schedule(
            "interleaved-1f1b",
            interleaved,
            _settled_rounds,
            title="1f1b with several stages on each rank, dealt out in turns",
            other_names=("interleaved",),
            stages=traits.SEVERAL_STAGES,
            counts=traits.WHOLE_ROUNDS,
            open_chunks=laws.open_in_rounds,
            torch_class="ScheduleInterleaved1F1B",
        ),
        Schedule(
            "interleaved-zb",
            interleaved_zero_bubble,
            _settled_rounds,
            title="interleaved-1f1b with weight gradients put off to fill the bubble (zero bubble, ZB-H1)",
            stages=traits.ANY_STAGES,
            counts=traits.WHOLE_ROUNDS,
            splits_backward=True,
            waits=True,
            bubble_left=laws.bubble_of_zb_h1,
            held=laws.held_by_interleaved_zb,
            open_chunks=laws.open_in_rounds,
            torch_class="ScheduleInterleavedZeroBubble",
        ),
        Schedule(
            "zbv",
            zbv,
            title="two stages on each rank, there and back, weight gradients put off (zero bubble, ZB-V)",
            stages=traits.STAGES_THROUGH_V,
            splits_backward=True,
            waits=True,
            bubble_left=laws.bubble_of_zbv,
            held=laws.held_by_zbv,
            torch_class="ScheduleZBVZeroBubble",
        ),
        Schedule(
            "dualpipev",
            dualpipev,
            title="two stages on each rank, there and back, forwards and backwards in pairs (DualPipe, folded)",
            stages=traits.STAGES_THROUGH_V,
            counts=traits.ONE_PER_STAGE,
            splits_backward=True,
            bubble_left=laws.bubble_of_dualpipev,
            held=laws.held_by_dualpipev,
            torch_class="ScheduleDualPipeV",
        ),
    )
}
# Those that only others have run: priced where a table of runs names them, never planned.
PUBLISHED = {
    rules.name: rules
    for rules in (
        Schedule(
            "zb-1p",
            _no_order,
            title="zero bubble with the memory of 1f1b (ZB-H1)",
            splits_backward=True,
            bubble_left=laws.bubble_of_zb_h1,
            held=laws.held_by_zb_h1,
        ),
        Schedule(
            "zb-2p",
            _no_order,
            title="zero bubble with twice the memory of 1f1b (ZB-H2)",
            splits_backward=True,
            bubble_left=laws.bubble_of_zb_h2,
            held=laws.held_by_zb_h2,
        ),
        Schedule(
            "v-half",
            _no_order,
            title="two stages on each rank, there and back, with half the memory of 1f1b",
            stages=traits.STAGES_THROUGH_V,
            splits_backward=True,
            bubble_left=laws.bubble_of_v_half,
            held=laws.held_by_v_half,
        ),
        Schedule(
            "v-min",
            _no_order,
            title="two stages on each rank, there and back, with a third of the memory of 1f1b",
            stages=traits.STAGES_THROUGH_V,
            splits_backward=True,
            bubble_left=laws.bubble_of_v_min,
            held=laws.held_by_v_min,
        ),
    )
}
