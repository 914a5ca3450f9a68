"""The constants that a fit looks for: factors, and effects of software, of products and of sites, each with its prior.

Three levels of effects, each a draw around its parent: products by generation and by precision on it; numbers of all
stacks, of groups of stacks and of each one; whole steps by family of runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planner.cost.error_bands import features, reach
from planner.cost.factors import (
    ALL,
    BOUNDS,
    LINEAR,
    PRODUCT_NUMBER,
    PRODUCTS,
    SITE_SPREAD,
    STACK_NUMBERS,
    Factors,
    Learned,
    Population,
    expected,
)
from planner.cost.hardware import generations
from planner.cost.job import Jobs
from profiles.models.transformer import Array, Flags

OFFSET = "offset"
# A site may be slower than others by no more than this.
LARGEST_OFFSET = 0.5
# What the step time is differentiated by: every constant is one of these on some of the runs.
DIRECTIONS = (*BOUNDS, *STACK_NUMBERS, OFFSET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One number of a fit: where it is kept, what it changes and of which runs, its bounds and its prior.

    Numbers are logarithms, but for those in LINEAR. Shapes: `runs` has one entry per run.
    """

    path: tuple[str, ...]
    direction: str
    runs: Flags
    low: float
    high: float
    mean: float
    spread: float

    @property
    def name(self) -> str:
        """The path as one word."""
        return ".".join(self.path)

    @property
    def is_linear(self) -> bool:
        """Whether the number is meant as it is."""
        return self.path[-1] in LINEAR


def constants_of(jobs: Jobs, family: np.ndarray, chosen: Flags) -> tuple[Constant, ...]:
    """All constants that the `chosen` runs may tell something of."""
    every = np.ones(len(jobs), dtype=bool)
    result = [_factor(name, every) for name in BOUNDS]
    result += [
        _effect(("everyone", name), name, every, own, own.everyone)
        for name, own in STACK_NUMBERS.items()
        if own.everyone > 0
    ]
    for kind, words in (("groups", jobs.stack.words(lambda one: one.group)), ("stacks", stack_names_of(jobs))):
        for word, runs in _parts(words, chosen):
            for name, own in STACK_NUMBERS.items():
                spread = own.group if kind == "groups" else own.own
                result.append(_effect((kind, word, name), name, runs, own, spread))
    for generation, runs in _parts(generations(jobs), chosen):
        path = ("products", generation)
        result.append(_effect((*path, ALL), PRODUCT_NUMBER, runs, PRODUCTS, PRODUCTS.group))
        for precision, some in _parts(np.where(runs, jobs.precision, ""), chosen & runs):
            result.append(_effect((*path, precision), PRODUCT_NUMBER, some & runs, PRODUCTS, PRODUCTS.own))
    return (*result, *(_site(name, runs) for name, runs in _parts(family, chosen)))


def stack_names_of(jobs: Jobs) -> np.ndarray:
    """The name that runs of each job's stack are known by."""
    return jobs.stack.words(lambda stack: stack.learned_as)


def _parts(words: np.ndarray, chosen: Flags) -> Iterator[tuple[str, Flags]]:
    """Every word of the chosen runs, with all runs that have it."""
    for word in np.unique(words[chosen]):
        yield str(word), words == word


def _factor(name: str, runs: Flags) -> Constant:
    low, mean, high, spread = BOUNDS[name]
    if name not in LINEAR:
        low, mean, high = (float(np.log(value)) for value in (low, mean, high))
    return Constant(path=("factors", name), direction=name, runs=runs, low=low, high=high, mean=mean, spread=spread)


def _effect(path: tuple[str, ...], direction: str, runs: Flags, own: Population, spread: float) -> Constant:
    low, high = float(np.log(own.low)), float(np.log(own.high))
    return Constant(path=path, direction=direction, runs=runs, low=low, high=high, mean=0.0, spread=spread)


def _site(name: str, runs: Flags) -> Constant:
    return Constant(
        path=("offsets", name), direction=OFFSET, runs=runs, low=-LARGEST_OFFSET, high=LARGEST_OFFSET, mean=0.0,
        spread=SITE_SPREAD,
    )  # fmt: skip


def learned_at(constants: Sequence[Constant], x: Array) -> Learned:
    """What a point of the search means."""
    found: dict[str, Any] = {"factors": {}, "everyone": {}, "groups": {}, "stacks": {}, "products": {}, "offsets": {}}
    for constant, number in zip(constants, x, strict=True):
        place = found
        for word in constant.path[:-1]:
            place = place.setdefault(word, {})
        as_is = constant.is_linear or constant.direction == OFFSET
        place[constant.path[-1]] = float(number) if as_is else float(np.exp(number))
    return replace(expected(), **{**found, "factors": Factors(**found["factors"])})


def moved(learned: Learned, direction: str, by: float) -> Learned:
    """What was learned, with a step in one direction, for all jobs."""
    if direction in STACK_NUMBERS:
        everyone = {**learned.everyone, direction: learned.everyone.get(direction, 1.0) * float(np.exp(by))}
        return replace(learned, everyone=everyone)
    value = getattr(learned.factors, direction)
    value = value + by if direction in LINEAR else value * float(np.exp(by))
    factors: Any = {direction: value}
    return replace(learned, factors=replace(learned.factors, **factors))


def step_length(direction: str) -> float:
    """How far a derivative in a direction looks: little against what the prior allows."""
    spread = BOUNDS[direction][3] if direction in BOUNDS else STACK_NUMBERS[direction].own
    return 0.01 * spread


def what_was_seen(jobs: Jobs) -> dict[str, Any]:
    """What `Learned` keeps of the jobs learned from."""
    return {
        "seen": {name: tuple(sorted(set(words.tolist()))) for name, words in features(jobs).items()},
        "reach": {name: (float(values.min()), float(values.max())) for name, values in reach(jobs).items()},
    }
