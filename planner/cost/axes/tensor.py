"""Tensor parallelism: every half layer sums partial results over the ranks that share its linears."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.groups import message_element_bytes, seconds
from planner.cost.job import Jobs
from planner.cost.unit_costs import Links
from profiles.models.transformer import Array


def half_layer_seconds(jobs: Jobs, links: Links) -> Array:
    """Seconds of the sum over ranks after one attention or feed-forward network, in one direction.

    Model: one all-reduce of the activations; with sequence parallelism a reduce-scatter and an all-gather of the same
    tensor. Source: Shoeybi et al. 2019 (arXiv 1909.08053); Korthikanti et al. 2022 (arXiv 2205.05198).
    """
    num_bytes = jobs.tokens * jobs.model.hidden_size * message_element_bytes(jobs)
    one = np.ones(len(jobs))
    summed = seconds(jobs, links, "all_reduce", num_bytes, jobs.tensor, one)
    scattered = seconds(jobs, links, "reduce_scatter", num_bytes, jobs.tensor, one)
    gathered = seconds(jobs, links, "all_gather", num_bytes, jobs.tensor, one)
    return np.where(jobs.sequence_parallel, scattered + gathered, summed)


def gather_seconds(jobs: Jobs, links: Links) -> Array:
    """Seconds of gathering activations again for a weight gradient, which sequence parallelism needs in backward."""
    num_bytes = jobs.tokens * jobs.model.hidden_size * message_element_bytes(jobs)
    gathered = seconds(jobs, links, "all_gather", num_bytes, jobs.tensor, np.ones(len(jobs)))
    return np.where(jobs.sequence_parallel, gathered, 0.0)
