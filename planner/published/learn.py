"""Learns the factors from measured runs: few, physical, bounded, each held near what one would expect of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.factors import PRODUCT_NUMBER, PRODUCTS, STACK_NUMBERS, Learned
from planner.cost.ingredients import Ingredients, ingredients_of
from planner.cost.job import Jobs
from planner.cost.jobs_step import step_seconds
from planner.cost.software_time import rules_of
from planner.published.constants import (
    DIRECTIONS,
    OFFSET,
    Constant,
    constants_of,
    learned_at,
    moved,
    step_length,
    what_was_seen,
)
from profiles.models.transformer import Array, Flags

# A published step time is uncertain by about this much, whatever its rounding says: repeats across software releases
# differ by 2 % (median).
RUN_NOISE = 0.04
# Beyond this error (of the logarithm) a run counts less.
DAMPED_FROM = 0.1
# Beyond so many standard deviations a site counts less: what it lacks is no clock, but a mechanism.
ODD_SITE = 2.0
TINY = 1e-12
# A fit ends where a step gains less than this, of a sum of squares in standard deviations.
LEAST_GAIN = 0.02
MOST_SLOPES, MOST_STEPS, MOST_HALVINGS = 12, 8, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Jobs with what was measured of them. Shapes: one entry per job; `source` says who published each."""

    jobs: Jobs
    family: np.ndarray
    source: np.ndarray
    step_seconds: Array

    def take(self, index: np.ndarray) -> Runs:
        """The runs at `index`."""
        return Runs(
            jobs=self.jobs.take(index),
            family=self.family[index],
            source=self.source[index],
            step_seconds=self.step_seconds[index],
        )


def family_weights(family: np.ndarray) -> Array:
    """Weights that give every family the same say; they add up to 1."""
    names, inverse, counts = np.unique(family, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts[inverse] / len(names))


def predict(made: Ingredients, learned: Learned) -> dict[str, Array]:
    """Step seconds by part. Shapes: one entry per job."""
    return step_seconds(replace(made, rules=rules_of(made.jobs, learned)), learned.factors)


def total_seconds(parts: Mapping[str, Array]) -> Array:
    """Step seconds. Shapes: one entry per job."""
    return np.asarray(np.sum(list(parts.values()), axis=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What runs taught, and how the fit came there.

    `x` has one number per constant, in the order of `constants`; `slopes` are derivatives of the logarithm of step
    times by direction. Shapes: `slopes` (run, direction).
    """

    constants: tuple[Constant, ...]
    x: Array
    slopes: Array
    learned: Learned

    def at(self, constants: Sequence[Constant]) -> Array:
        """Where a fit of other constants starts: at what is known of them here, else at their prior."""
        known = {constant.path: number for constant, number in zip(self.constants, self.x, strict=True)}
        return np.array([known.get(constant.path, constant.mean) for constant in constants])


def learn(runs: Runs, made: Ingredients | None = None, chosen: Flags | None = None, near: Fit | None = None) -> Fit:
    """The constants of least weighted error in the logarithm, outliers damped.

    Model: maximum posterior of independent normal priors around each constant's parent, and errors of RUN_NOISE.
    `made` are the ingredients of all `runs`, given where several fits share them; `chosen` the runs to learn from;
    `near` a fit to nearly the same runs, from which this one starts.
    """
    made = made or ingredients_of(runs.jobs)
    chosen = np.ones(len(runs.jobs), dtype=bool) if chosen is None else chosen
    constants = constants_of(runs.jobs, runs.family, chosen)
    search = _Search(made=made, target=np.log(runs.step_seconds), weight=_weights(runs.family, chosen), of=constants)
    x, slopes = search.find(near.at(constants), near.slopes) if near else search.find(search.mean, None)
    taught = replace(
        learned_at(constants, x),
        spreads=search.spreads(x, slopes),
        unknown=unknown_spreads(slopes, _weights(runs.family, chosen)),
        **what_was_seen(runs.jobs.take(chosen)),
    )
    return Fit(constants=constants, x=x, slopes=slopes, learned=taught)


def _weights(family: np.ndarray, chosen: Flags) -> Array:
    """One over the error of each run, 0 of those not chosen.

    Model: a family counts as many independent runs as the square root of its rows, which share unknowns beside that of
    their site.
    """
    _, inverse, counts = np.unique(family, return_inverse=True, return_counts=True)
    return np.where(chosen, 1.0 / np.sqrt(np.sqrt(counts[inverse])) / RUN_NOISE, 0.0)


def unknown_spreads(slopes: Array, weight: Array) -> dict[str, float]:
    """Spread of step times (of the logarithm) for want of runs of a stack, a group, a generation or a precision."""
    share = weight**2 / np.sum(weight**2)
    square = {name: float(share @ slopes[:, DIRECTIONS.index(name)] ** 2) for name in STACK_NUMBERS}

    def of_stacks(spreads: Mapping[str, float]) -> float:
        return float(np.sqrt(sum(square[name] * spreads[name] ** 2 for name in STACK_NUMBERS)))

    product = float(np.sqrt(square[PRODUCT_NUMBER]))
    return {
        "stack": of_stacks({name: own.own for name, own in STACK_NUMBERS.items()}),
        "group": of_stacks({name: own.group for name, own in STACK_NUMBERS.items()}),
        "generation": product * PRODUCTS.group,
        "precision": product * PRODUCTS.own,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """A fit by Gauss-Newton steps; what a constant does is a direction's derivative on its runs."""

    made: Ingredients
    target: Array
    weight: Array
    of: tuple[Constant, ...]

    @property
    def mean(self) -> Array:
        return np.array([constant.mean for constant in self.of])

    @property
    def prior(self) -> Array:
        return np.array([constant.spread for constant in self.of])

    @property
    def least(self) -> Array:
        """From how many standard deviations on a prior dislikes a constant less: a site may be an outlier."""
        return np.array([ODD_SITE if constant.direction == OFFSET else np.inf for constant in self.of])

    def held(self, x: Array) -> Array:
        """How firmly its prior holds each constant: one over the square of its spread, less of an outlier."""
        away = np.abs(x - self.mean) / self.prior
        return np.asarray(np.minimum(1.0, self.least / np.maximum(away, TINY)) / self.prior**2)

    def find(self, x: Array, slopes: Array | None) -> tuple[Array, Array]:
        """The best point and the slopes there; slopes of a point near by are good for the first steps."""
        fresh = slopes is None
        slopes = self.slopes(x) if slopes is None else slopes
        error = self.errors(x)
        for _ in range(MOST_SLOPES):
            before = self.cost(x, error)
            for _ in range(MOST_STEPS):
                start = self.cost(x, error)
                x, error = self.step(x, error, slopes)
                if start - self.cost(x, error) < LEAST_GAIN:
                    break
            if fresh and before - self.cost(x, error) < LEAST_GAIN:
                break
            slopes, fresh = self.slopes(x), True
        return x, slopes

    def errors(self, x: Array) -> Array:
        """Predicted over measured, sites' offsets included, as logarithms. Shapes: one entry per run."""
        result = np.log(total_seconds(predict(self.made, learned_at(self.of, x)))) - self.target
        for constant, number in zip(self.of, x, strict=True):
            if constant.direction == OFFSET:
                result = result + np.where(constant.runs, number, 0.0)
        return np.asarray(result)

    def slopes(self, x: Array) -> Array:
        """Derivatives of the logarithm of step times by every direction. Shapes: (run, direction)."""
        learned = learned_at(self.of, x)
        here = np.log(total_seconds(predict(self.made, learned)))
        columns = []
        for direction in DIRECTIONS[:-1]:
            by = step_length(direction)
            there = np.log(total_seconds(predict(self.made, moved(learned, direction, by))))
            columns.append((there - here) / by)
        return np.stack([*columns, np.ones(len(here))], axis=1)

    def cost(self, x: Array, error: Array) -> float:
        """Squares of errors in standard deviations, beyond DAMPED_FROM linear, and of what the prior dislikes."""
        return float(
            self.weight**2 @ huber(error, DAMPED_FROM) + np.sum(huber((x - self.mean) / self.prior, self.least))
        )

    def step(self, x: Array, error: Array, slopes: Array) -> tuple[Array, Array]:
        """A point of less cost, or the same one."""
        hessian, jacobian = self.hessian(x, error, slopes)
        slope = jacobian.T @ (self._damped(error) * error) + (x - self.mean) * self.held(x)
        low = np.array([constant.low for constant in self.of]) - x
        high = np.array([constant.high for constant in self.of]) - x
        move, cost = bounded_minimum(hessian, slope, low, high), self.cost(x, error)
        for _ in range(MOST_HALVINGS):
            found = self.errors(x + move)
            if self.cost(x + move, found) < cost:
                return x + move, found
            move = move / 2
        return x, error

    def _damped(self, error: Array) -> Array:
        return self.weight**2 * np.minimum(1.0, DAMPED_FROM / np.maximum(np.abs(error), TINY))

    def hessian(self, x: Array, error: Array, slopes: Array) -> tuple[Array, Array]:
        """Half of the second derivative of the cost, by Gauss and Newton, and the derivatives of the errors."""
        columns = [slopes[:, DIRECTIONS.index(one.direction)] * one.runs for one in self.of]
        jacobian = np.stack(columns, axis=1)
        return (jacobian.T * self._damped(error)) @ jacobian + np.diag(self.held(x)), jacobian

    def spreads(self, x: Array, slopes: Array) -> dict[str, tuple[float, float]]:
        """Standard deviation of every constant before and after the runs."""
        hessian, _ = self.hessian(x, self.errors(x), slopes)
        after = np.sqrt(np.diag(np.linalg.inv(hessian)))
        return {one.name: (one.spread, float(own)) for one, own in zip(self.of, after, strict=True)}


def huber(value: Array, least: Array | float) -> Array:
    """The square of a value, from `least` on linear."""
    size = np.abs(value)
    return np.where(size > least, np.minimum(size, least) * (2 * size - np.minimum(size, least)), size**2)


def bounded_minimum(hessian: Array, slope: Array, low: Array, high: Array) -> Array:
    """The step of least `slope` · step + step · hessian · step / 2 within bounds: what leaves them stays at them."""
    step, free = np.zeros(len(slope)), np.ones(len(slope), dtype=bool)
    while free.any():
        rest = -(slope + hessian @ np.where(free, 0.0, step))[free]
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], rest)
        inside = np.clip(step, low, high)
        out = free & (inside != step)
        step = np.where(out, inside, step)
        if not out.any():
            break
        free = free & ~out
    return step
