"""Learns the factors from measured runs: few, physical, bounded, each held near what one would expect of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.error_bands import reach, spread
from planner.cost.factors import BOUNDS, STACK_BOUNDS, Factors, Learned, expected
from planner.cost.hardware import generations
from planner.cost.ingredients import Ingredients, ingredients_of
from planner.cost.job import Jobs
from planner.cost.jobs_step import step_seconds
from planner.cost.software_time import rules_of
from profiles.models.transformer import Array, Flags

# A published step time is uncertain by about this much, whatever its rounding says: repeats across software releases
# differ by 2 % (median).
RUN_NOISE = 0.04
# Beyond this error (of the logarithm) a run counts less.
DAMPED_FROM = 0.1
# Factors that may be 0 are fitted as they are, the others by their logarithm.
LINEAR = ("compute_slowdown", "comm_slowdown", "straggling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Jobs with what was measured of them. Shapes: one entry per job."""

    jobs: Jobs
    family: np.ndarray
    step_seconds: Array

    def take(self, index: np.ndarray) -> Runs:
        """The runs at `index`."""
        return Runs(jobs=self.jobs.take(index), family=self.family[index], step_seconds=self.step_seconds[index])


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


def learn(runs: Runs, made: Ingredients | None = None, chosen: Flags | None = None) -> Learned:
    """The factors of least weighted error in the logarithm, families weighted alike, outliers damped.

    Model: maximum posterior of independent normal priors (BOUNDS, STACK_BOUNDS) and errors of RUN_NOISE.
    `made` are the ingredients of all `runs`, given where several fits share them; `chosen` the runs to learn from.
    """
    from scipy.optimize import least_squares

    made = made or ingredients_of(runs.jobs)
    chosen = np.ones(len(runs.jobs), dtype=bool) if chosen is None else chosen
    stacks = sorted(set(runs.jobs.stack[chosen].words(lambda stack: stack.name).tolist()))
    groups = sorted(set(runs.jobs.stack[chosen].words(lambda stack: stack.group).tolist()))
    search = _Search(groups=tuple(groups), stacks=tuple(stacks))
    target = np.log(runs.step_seconds)
    family = runs.family[chosen]
    # A family counts as many independent runs as the square root of its rows: its rows share their unknowns.
    _, inverse, counts = np.unique(family, return_inverse=True, return_counts=True)
    weight = 1.0 / np.sqrt(np.sqrt(counts[inverse])) / RUN_NOISE

    start = search.start

    def residuals(x: Array) -> Array:
        error = (np.log(total_seconds(predict(made, search.learned(x)))) - target)[chosen]
        # Huber's loss by hand: the penalties must stay quadratic.
        scaled = np.maximum(np.abs(error) / DAMPED_FROM, 1.0)
        damped = np.where(scaled > 1, DAMPED_FROM * np.sqrt(2 * scaled - 1), np.abs(error)) * np.sign(error)
        return np.concatenate([damped * weight, (x - start) / search.spread])

    found = least_squares(residuals, start, bounds=search.limits, x_scale=0.1, diff_step=1e-4, max_nfev=40)
    seen = runs.jobs.take(chosen)
    return replace(
        search.learned(found.x),
        generations=tuple(sorted(set(generations(seen).tolist()))),
        reach={name: (float(values.min()), float(values.max())) for name, values in reach(seen).items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Every run predicted from what the other families taught. Shapes: one entry per run."""

    step_seconds: Array
    spread: Array


def leave_one_family_out(runs: Runs, made: Ingredients) -> LeftOut:
    """Step seconds and their spread, of every family from the others."""
    seconds, spreads = np.empty(len(runs.jobs)), np.empty(len(runs.jobs))
    for name in np.unique(runs.family):
        held_out = runs.family == name
        learned = learn(runs, made, ~held_out)
        parts = predict(made, learned)
        seconds[held_out] = total_seconds(parts)[held_out]
        spreads[held_out] = spread(runs.jobs, parts, learned)[held_out]
    return LeftOut(step_seconds=seconds, spread=spreads)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """The numbers a fit looks for, in order: factors, then those of each group, then of each stack."""

    groups: tuple[str, ...]
    stacks: tuple[str, ...]

    @property
    def start(self) -> Array:
        values = [bound[1] if name in LINEAR else np.log(bound[1]) for name, bound in BOUNDS.items()]
        return np.array(values + [0.0] * (len(STACK_BOUNDS) * (len(self.groups) + len(self.stacks))))

    @property
    def limits(self) -> tuple[Array, Array]:
        low = [bound[0] - 1e-9 if name in LINEAR else np.log(bound[0]) for name, bound in BOUNDS.items()]
        high = [bound[2] if name in LINEAR else np.log(bound[2]) for name, bound in BOUNDS.items()]
        count = len(self.groups) + len(self.stacks)
        low += [float(np.log(bound[0])) for bound in STACK_BOUNDS.values()] * count
        high += [float(np.log(bound[1])) for bound in STACK_BOUNDS.values()] * count
        return np.array(low), np.array(high)

    @property
    def spread(self) -> Array:
        own = [bound[3] for bound in BOUNDS.values()]
        group = [bound[2] for bound in STACK_BOUNDS.values()] * len(self.groups)
        return np.array(own + group + [bound[3] for bound in STACK_BOUNDS.values()] * len(self.stacks))

    def learned(self, x: Array) -> Learned:
        """What a point of the search means."""
        own = {
            name: float(max(value, 0.0) if name in LINEAR else np.exp(value))
            for name, value in zip(BOUNDS, x, strict=False)
        }
        rows = np.exp(x[len(BOUNDS) :]).reshape(-1, len(STACK_BOUNDS)).tolist()
        tables = [dict(zip(STACK_BOUNDS, row, strict=True)) for row in rows]
        return replace(
            expected(),
            factors=Factors(**own),
            groups=dict(zip(self.groups, tables, strict=False)),
            stacks=dict(zip(self.stacks, tables[len(self.groups) :], strict=True)),
        )
