"""Pipeline schedules as lists of steps: replay times the list, the executor performs its order, the report draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from profiles.errors import UnknownNameError

Action = Literal["F", "B"]


@dataclass(frozen=True, slots=True)
class Step:
    """One action of a stage on one micro-batch: F forward, B backward."""

    action: Action
    microbatch: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """A name, the order of steps on each stage, and how many micro-batches a stage holds at once."""

    name: str
    steps: Callable[[int, int, int], Iterator[Step]]
    in_flight: Callable[[int, int, int], int]


def _gpipe_steps(stage: int, num_stages: int, num_microbatches: int) -> Iterator[Step]:
    """All forwards, then all backwards. Source: Huang et al., GPipe, 2019."""
    del stage, num_stages
    yield from (Step("F", microbatch) for microbatch in range(num_microbatches))
    yield from (Step("B", microbatch) for microbatch in range(num_microbatches))


def _one_f_one_b_steps(stage: int, num_stages: int, num_microbatches: int) -> Iterator[Step]:
    """Forwards until the first gradient can arrive, then a backward after each. Source: PipeDream-flush, 2021."""
    warm_up = min(num_microbatches, num_stages - stage)
    yield from (Step("F", microbatch) for microbatch in range(warm_up))
    for microbatch in range(num_microbatches):
        yield Step("B", microbatch)
        if warm_up + microbatch < num_microbatches:
            yield Step("F", warm_up + microbatch)


def _all_in_flight(stage: int, num_stages: int, num_microbatches: int) -> int:
    del stage, num_stages
    return num_microbatches


def _few_in_flight(stage: int, num_stages: int, num_microbatches: int) -> int:
    return min(num_microbatches, num_stages - stage)


SCHEDULES = {
    "gpipe": Schedule("gpipe", _gpipe_steps, _all_in_flight),
    "1f1b": Schedule("1f1b", _one_f_one_b_steps, _few_in_flight),
}


def schedule(name: str) -> Schedule:
    """The schedule called `name`.

    Raises: UnknownNameError.
    """
    if name not in SCHEDULES:
        raise UnknownNameError("schedule", name, SCHEDULES)
    return SCHEDULES[name]
