"""How sure a predicted step time is: from where its seconds come, and how far the job lies from what runs taught.

The spread's shape is assumed; its scale is learned for each distance, so that bands of 90 % hold that share of runs of
that distance that were left out of the learning (Mondrian conformal prediction, families weighted alike). A job's
distance is how many of its features no run had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from planner.cost.factors import Learned
from planner.cost.hardware import generations
from planner.cost.job import Jobs, Names
from planner.parts import PART_SPREADS
from profiles.models.transformer import Array, Flags

# Bands hold 90 % of the runs of families that had no part in setting them where they hold this share of those that did.
COVERAGE = 0.92
# Distances from here on are one class, of which predictions say that they are outside of what was measured.
FARTHEST = 3
# Of the whole: what no part knows, a site's clock and version above all. Less than this makes bands that are wider on
# average for the same share of runs.
COMMON_SPREAD = 0.11
# Models, clusters and sequences beyond what was learned from: spread per doubling.
BEYOND_SPREAD = 0.02
# What a job is taken for, and may not be.
GUESS_SPREAD = 0.06
# Features of a job by name, as predictions call them.
FEATURES = {
    "stack": "software",
    "products": "precision on this generation of devices",
    "sharding": "ZeRO stage with or without a pipeline",
    "experts": "experts with or without sharded weights",
    "expert_span": "experts within or over fast domains",
    "attention": "attention kernel on this generation",
    "overlap": "choice of what is overlapped",
    "offload": "offloading",
    "recompute": "recomputation",
    "schedule": "pipeline schedule",
    "stack_on": "software on this generation",
}


def features(jobs: Jobs) -> dict[str, Names]:
    """A word of each feature by which jobs differ in kind. Shapes: one entry per job."""
    stack, generation = jobs.stack.words(lambda stack: stack.learned_as), generations(jobs)
    is_split, is_moe, is_sharded = jobs.pipeline > 1, jobs.model.is_moe, jobs.zero_stage == 3
    zero = jobs.zero_stage.astype(np.int64).astype(np.str_)
    inside = jobs.expert * np.maximum(jobs.tensor, jobs.expert_tensor) <= jobs.fast_domain
    is_copied = jobs.data * jobs.context > 1
    overlap = [
        np.where(where, _word(flags, word), "")
        for flags, where, word in (
            (jobs.overlap_grad, is_copied, "gradients"),
            (jobs.overlap_param, is_copied, "parameters"),
            (jobs.overlap_tensor, jobs.tensor > 1, "tensor"),
            (jobs.overlap_pipeline, is_split, "pipeline"),
        )
    ]
    return {
        "stack": stack,
        "products": _join(generation, jobs.precision),
        "sharding": _join(zero, _word(is_split, "pipeline")),
        "experts": np.where(is_moe, _join(_word(is_moe, "experts"), _word(is_sharded, "sharded")), ""),
        "expert_span": np.where(is_moe & (jobs.expert > 1), _word(inside, "inside", "over"), ""),
        "attention": _join(generation, jobs.attention_kernel),
        "overlap": _join(*overlap),
        "offload": _join(_word(jobs.optimizer_offload, "optimizer"), _word(jobs.activation_offload, "activations")),
        "recompute": jobs.recompute,
        "schedule": np.where(is_split, jobs.schedule, ""),
        "stack_on": _join(stack, generation),
    }


def _word(flags: Flags, yes: str, no: str = "") -> Names:
    return np.where(flags, yes, no)


def _join(*words: Names) -> Names:
    return reduce(lambda left, right: np.char.add(np.char.add(left, " "), right), words)


def unseen(jobs: Jobs, learned: Learned) -> dict[str, Flags]:
    """Of which jobs a feature is such as no run had. Shapes: one entry per job."""
    seen = {name: np.array(words, dtype=np.str_) for name, words in learned.seen.items()}
    none = np.array([], dtype=np.str_)
    return {name: ~np.isin(words, seen.get(name, none)) for name, words in features(jobs).items()}


def distance(jobs: Jobs, learned: Learned) -> NDArray[np.int64]:
    """How many features of each job no run had, FARTHEST at the most. Shapes: one entry per job."""
    return np.asarray(np.minimum(np.sum(list(unseen(jobs, learned).values()), axis=0), FARTHEST), dtype=np.int64)


def remarks(jobs: Jobs, learned: Learned) -> list[tuple[str, ...]]:
    """What is said of each job that lies far outside of what was measured."""
    flags = unseen(jobs, learned)
    far = np.sum(list(flags.values()), axis=0) >= FARTHEST
    return [
        (
            "outside of what was measured: no run had its "
            + ", ".join(FEATURES[name] for name in flags if flags[name][i]),
        )
        if far[i]
        else ()
        for i in range(len(jobs))
    ]


def spread(jobs: Jobs, parts: Mapping[str, Array], learned: Learned) -> Array:
    """Relative spread of the step time before scaling. Shapes: one entry per job."""
    total = sum(parts.values())
    variance = np.full(len(jobs), COMMON_SPREAD**2)
    for name, seconds in parts.items():
        variance = variance + (seconds / total * PART_SPREADS[name]) ** 2
    new = unseen(jobs, learned)
    strange = {
        "stack": new["stack"],
        "group": ~np.isin(jobs.stack.words(lambda stack: stack.group), list(learned.groups)),
        "generation": ~np.isin(generations(jobs), list(learned.products)),
        "precision": new["products"],
    }
    for name, flags in strange.items():
        variance = variance + np.where(flags, learned.unknown.get(name, 0.0) ** 2, 0.0)
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


def scales_for(errors: Array, spreads: Array, distances: NDArray[np.int64], weights: Array) -> tuple[float, ...]:
    """The factors of `scale_for` by distance; where a farther one needs less than a nearer one, they share theirs."""
    blocks: list[tuple[list[int], float]] = []
    for number in range(FARTHEST + 1):
        numbers, least = [number], blocks[-1][1] if blocks else 0.0
        while True:
            own = np.isin(distances, numbers)
            found = scale_for(errors[own], spreads[own], weights[own]) if own.any() else least
            if not blocks or found >= blocks[-1][1]:
                break
            numbers = blocks.pop()[0] + numbers
        blocks.append((numbers, found))
    return tuple(scale for numbers, scale in blocks for _ in numbers)


def scales_at(scales: Sequence[float], distances: NDArray[np.int64]) -> Array:
    """The factor at each distance; beyond the last one given, that one. Shapes: one entry per job."""
    return np.array(scales)[np.minimum(distances, len(scales) - 1)]


def half_width(jobs: Jobs, parts: Mapping[str, Array], learned: Learned) -> Array:
    """Half of the band of each job, as a logarithm. Shapes: one entry per job."""
    return spread(jobs, parts, learned) * scales_at(learned.band_scales, distance(jobs, learned))


def band(seconds: Array, half: Array) -> tuple[Array, Array]:
    """Lowest and highest seconds of the band. Shapes: one entry per job."""
    width = np.exp(half)
    return seconds / width, seconds * width
