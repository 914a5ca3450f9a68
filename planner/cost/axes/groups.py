"""Which ranks a group spans. Ranks are numbered tensor first, then context, then data, then pipeline.

Where data parallelism is outermost the last two change places.
"""

from __future__ import annotations

import numpy as np

from planner.cost.job import Jobs
from planner.cost.unit_costs import Links
from profiles.machines.profile import Collective
from profiles.models.transformer import Array, Flags

# Activations travel in 16 bits, whatever products are computed in, but where nothing is.
MESSAGE_ELEMENT_BYTES, FULL_ELEMENT_BYTES = 2.0, 4.0
FULL_PRECISIONS = ("fp32", "tf32")


def message_element_bytes(jobs: Jobs) -> Array:
    """Bytes of an element of activations on their way. Shapes: one entry per job."""
    return np.where(np.isin(jobs.precision, FULL_PRECISIONS), FULL_ELEMENT_BYTES, MESSAGE_ELEMENT_BYTES)


def members_inside(jobs: Jobs, size: Array, stride: Array) -> Array:
    """How many of a group's `size` members, `stride` ranks apart, share a fast domain.

    Source: the rank order of Megatron-LM (tp-cp-ep-dp-pp), which other stacks follow.
    """
    return np.clip(np.floor(jobs.fast_domain / stride), 1.0, np.maximum(size, 1.0))


def replicas_inside(jobs: Jobs, size: Array, stride: Array) -> Array:
    """The same for a group of data- and context-parallel ranks, whose later members may lie beyond the pipeline."""
    together = members_inside(jobs, size, stride)
    block = jobs.tensor * jobs.context * jobs.pipeline
    near = np.minimum(together, np.maximum(jobs.tensor * jobs.context / stride, 1.0))
    whole_blocks = np.clip(np.floor(jobs.fast_domain / block), 1.0, jobs.data)
    apart = np.clip(np.where(jobs.fast_domain >= block, near * whole_blocks, near), 1.0, np.maximum(size, 1.0))
    return np.asarray(np.where(jobs.data_outside, apart, together))


def pipeline_stride(jobs: Jobs) -> Array:
    """How far apart the ranks of neighbouring stages are."""
    return np.asarray(np.where(jobs.data_outside, jobs.tensor * jobs.context, jobs.num_devices / jobs.pipeline))


def seconds(jobs: Jobs, links: Links, collective: Collective, num_bytes: Array, size: Array, stride: Array) -> Array:
    """Seconds of `collective` over a group of `size` ranks that lie `stride` apart. Shapes: one entry per job."""
    return links.seconds(collective, num_bytes, size, members_inside(jobs, size, stride), stride)


def replica_seconds(
    jobs: Jobs, links: Links, collective: Collective, num_bytes: Array, size: Array, stride: Array
) -> Array:
    """The same over data- and context-parallel ranks."""
    return links.seconds(collective, num_bytes, size, replicas_inside(jobs, size, stride), stride)


def experts_inside(jobs: Jobs, size: Array) -> Array:
    """Ranks within the fast domain of the first of `size` that share experts: neighbours, or so on the data axis.

    Those have tensor and context ranks between them, and the pipeline where data parallelism is outside. Where they are
    more than the data axis has, they are on the others too.
    """
    on_data = replicas_inside(jobs, size, jobs.tensor * jobs.context)
    return np.where(_is_on_data(jobs), on_data, members_inside(jobs, size, jobs.expert_tensor))


def experts_apart(jobs: Jobs) -> Array:
    """How far apart neighbours lie among the ranks that share experts. Shapes: one entry per job."""
    return np.asarray(np.where(_is_on_data(jobs), jobs.tensor * jobs.context, jobs.expert_tensor))


def expert_seconds(jobs: Jobs, links: Links, collective: Collective, num_bytes: Array, size: Array) -> Array:
    """Seconds of `collective` over `size` ranks that share experts. Shapes: one entry per job."""
    return links.seconds(collective, num_bytes, size, experts_inside(jobs, size), experts_apart(jobs))


def _is_on_data(jobs: Jobs) -> Flags:
    is_own = np.asarray(jobs.stack.read(lambda stack: stack.habits.experts_on_data), dtype=bool)
    return np.asarray(is_own & (np.mod(jobs.data, np.maximum(jobs.expert, 1.0)) == 0))
