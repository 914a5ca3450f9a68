"""How sure a predicted step time is: from where its seconds come, and how far the job lies from what runs taught.

The spread's shape is assumed; its scale is learned, so that bands of 90 % hold that share of runs whose family was left
out (split conformal prediction, families weighted alike).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planner.cost.factors import Learned
from planner.cost.hardware import generations
from planner.cost.job import Jobs
from planner.parts import PART_SPREADS
from profiles.models.transformer import Array

COVERAGE = 0.9
# Of the whole: what no part knows, software that no run taught, hardware that none taught.
COMMON_SPREAD, NEW_STACK_SPREAD, NEW_GENERATION_SPREAD = 0.04, 0.07, 0.08
# Models, clusters and sequences beyond what was learned from: spread per doubling.
BEYOND_SPREAD = 0.02
# What a job is taken for, and may not be.
GUESS_SPREAD = 0.06


def spread(jobs: Jobs, parts: Mapping[str, Array], learned: Learned) -> Array:
    """Relative spread of the step time before scaling. Shapes: one entry per job."""
    total = sum(parts.values())
    variance = np.full(len(jobs), COMMON_SPREAD**2)
    for name, seconds in parts.items():
        variance = variance + (seconds / total * PART_SPREADS[name]) ** 2
    is_taught = np.isin(jobs.stack.words(lambda stack: stack.name), list(learned.stacks))
    variance = variance + np.where(is_taught, 0.0, NEW_STACK_SPREAD**2)
    known = np.isin(generations(jobs), learned.generations)
    variance = variance + np.where(known, 0.0, NEW_GENERATION_SPREAD**2)
    variance = variance + (BEYOND_SPREAD * doublings_beyond(jobs, learned)) ** 2
    variance = variance + GUESS_SPREAD**2 * jobs.guesses
    return np.asarray(np.sqrt(variance))


def reach(jobs: Jobs) -> dict[str, Array]:
    """The sizes by which a job may lie beyond what was learned from."""
    return {
        "num_devices": jobs.num_devices,
        "hidden_size": jobs.model.hidden_size,
        "sequence": jobs.sequence,
        "tokens": jobs.tokens,
        "num_microbatches": jobs.num_microbatches,
    }


def doublings_beyond(jobs: Jobs, learned: Learned) -> Array:
    """How many doublings a job lies outside the sizes learned from, over all sizes. Shapes: one entry per job."""
    total = np.zeros(len(jobs))
    for name, values in reach(jobs).items():
        low, high = learned.reach.get(name, (0.0, np.inf))
        total = total + np.maximum(np.log2(values / max(high, 1e-9)), 0.0)
        total = total + np.maximum(np.log2(max(low, 1e-9) / values), 0.0)
    return total


def scale_for(errors: Array, spreads: Array, weights: Array, coverage: float = COVERAGE) -> float:
    """The factor on `spreads` that makes bands hold `coverage` of the runs; `errors` are logarithms of ratios."""
    ratios = np.abs(errors) / spreads
    order = np.argsort(ratios)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(ratios[order][min(int(np.searchsorted(reached, coverage)), len(ratios) - 1)])


def band(seconds: Array, spreads: Array, learned: Learned) -> tuple[Array, Array]:
    """Lowest and highest seconds of the band. Shapes: one entry per job."""
    width = np.exp(spreads * learned.band_scale)
    return seconds / width, seconds * width
