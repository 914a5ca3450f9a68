"""What rows do not say and a planner would choose: the micro-batch, and whether layers are recomputed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.cost.job import Jobs
from planner.cost.memory.footprint import footprint
from profiles.models.transformer import Flags

# A pipeline has at least so many micro-batches per stage, lest it stands idle for more than a quarter of its time.
ROUNDS = 4.0
# More tokens of one rank at once make no kernel faster.
ENOUGH_TOKENS = 16384.0
BATCH_RULE = (
    f"the largest that fits, of at most {ENOUGH_TOKENS:g} tokens, with {ROUNDS:g} micro-batches per pipeline stage"
)
# A run ran: only what is predicted to take more than this of its device cannot have been without recomputation.
SURELY_FULL = 1.25
RECOMPUTE_RULE = "without it, memory far exceeds the device's"


def needs_recomputation(jobs: Jobs, unknown: Flags) -> NDArray[np.int64]:
    """Which jobs must recompute their layers, of those of which that is `unknown`."""
    places = np.flatnonzero(unknown)
    if not len(places):
        return places
    own = jobs.take(places)
    full = replace(own, recompute=np.full(len(own), "full"))
    plain, less = (footprint(each).device_bytes / own.device_memory_bytes for each in (own, full))
    return places[(plain > SURELY_FULL) & (less <= 1)]


def with_recomputation(jobs: Jobs, places: NDArray[np.int64]) -> Jobs:
    """The jobs, of which those at `places` recompute their layers."""
    methods = jobs.recompute.astype("U9")
    methods[places] = "full"
    return replace(jobs, recompute=methods) if len(places) else jobs


def with_usual_batches(jobs: Jobs, unknown: Flags) -> Jobs:
    """The jobs with the largest sensible micro-batch where it is `unknown`; those have micro-batches of one sample."""
    if not unknown.any():
        return jobs
    own = jobs.take(unknown)
    best = np.ones(len(own))
    size = 2.0
    while True:
        count = own.num_microbatches / size
        allowed = (np.mod(own.num_microbatches, size) == 0) & (own.tokens * size <= ENOUGH_TOKENS)
        allowed &= (own.pipeline == 1) | (count >= ROUNDS * own.pipeline)
        if not allowed.any():
            break
        larger = replace(own, micro_batch=np.full(len(own), size), num_microbatches=np.maximum(count, 1.0))
        fits = footprint(larger).device_bytes <= own.device_memory_bytes
        best = np.where(allowed & fits, size, best)
        size *= 2
    micro, count = jobs.micro_batch.copy(), jobs.num_microbatches.copy()
    micro[unknown], count[unknown] = best, own.num_microbatches / best
    return replace(jobs, micro_batch=micro, num_microbatches=count)
