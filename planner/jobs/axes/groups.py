"""Which ranks a group spans. Ranks are numbered tensor first, then context, then data, then pipeline."""

from __future__ import annotations

import numpy as np

from planner.jobs.job import Jobs
from profiles.interconnect import Collective, Fabric, collective_seconds
from profiles.transformer import Array


def members_inside(jobs: Jobs, size: Array, stride: Array) -> Array:
    """How many of a group's `size` members, `stride` ranks apart, share a fast domain.

    Source: the rank order of Megatron-LM (tp-cp-ep-dp-pp), which other stacks follow.
    """
    return np.clip(np.floor(jobs.fast_domain / stride), 1.0, np.maximum(size, 1.0))


def seconds(jobs: Jobs, fabric: Fabric, collective: Collective, num_bytes: Array, size: Array, stride: Array) -> Array:
    """Seconds of `collective` over a group of `size` ranks that lie `stride` apart. Shapes: one entry per job."""
    return collective_seconds(collective, num_bytes, size, members_inside(jobs, size, stride), fabric)
