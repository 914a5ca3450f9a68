"""Tensor parallelism: every half layer sums partial results over the ranks that share its linears."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.groups import message_element_bytes, seconds
from planner.cost.job import Jobs
from planner.cost.low_precision import is_low
from planner.cost.unit_costs import Links
from profiles.models.operators import PHASES, Phase, add
from profiles.models.traced_sizes import TracedSizes
from profiles.models.transformer import Array

# Bytes of an element that is gathered in 8 bits.
LOW_ELEMENT_BYTES = 1.0


def half_layer_seconds(jobs: Jobs, links: Links) -> Array:
    """Seconds of the sum over ranks after one attention or feed-forward network, in one direction.

    Model: one all-reduce of the activations; with sequence parallelism a reduce-scatter and an all-gather of the same
    tensor. Source: Shoeybi et al. 2019 (arXiv 1909.08053); Korthikanti et al. 2022 (arXiv 2205.05198).
    """
    num_bytes = jobs.tokens * jobs.model.hidden_size * message_element_bytes(jobs)
    one = np.ones(len(jobs))
    summed = seconds(jobs, links, "all_reduce", num_bytes, jobs.tensor, one)
    scattered = seconds(jobs, links, "reduce_scatter", num_bytes, jobs.tensor, one)
    return np.where(jobs.sequence_parallel, scattered + gather_seconds(jobs, links), summed)


def gather_seconds(jobs: Jobs, links: Links) -> Array:
    """Seconds of gathering activations once, which sequence parallelism needs for a weight gradient as well.

    Model: what a product takes in 8 bits travels so where the software converts before it gathers.
    """
    lowers = is_low(jobs) & (jobs.stack.read(lambda stack: float(stack.time.gathers_low)) > 0)
    size = np.where(lowers, LOW_ELEMENT_BYTES, message_element_bytes(jobs))
    num_bytes = jobs.tokens * jobs.model.hidden_size * size
    gathered = seconds(jobs, links, "all_gather", num_bytes, jobs.tensor, np.ones(len(jobs)))
    return np.where(jobs.sequence_parallel, gathered, 0.0)


def sum_bytes(jobs: Jobs, kind: str) -> Array:
    """Bytes of a sum of a layer: of hidden states, or of a task's module as a mean over its own."""
    model = jobs.model
    if not isinstance(model, TracedSizes) or not model.profile.splitting.degrees:
        return np.asarray(jobs.tokens * model.hidden_size * message_element_bytes(jobs))
    sent = model.layer(kind).messages
    total = model.at(add(*(message.num_bytes for message in sent)), jobs.micro_batch, jobs.tensor)
    return np.asarray(total / max(len(sent), 1))


def layer_sums(jobs: Jobs, links: Links) -> dict[tuple[str, Phase], Array]:
    """Seconds of all sums of a layer by kind and direction, of a task's module, where each has its own bytes."""
    model = jobs.model
    if not isinstance(model, TracedSizes) or not model.profile.splitting.degrees:
        return {}
    return {(kind, phase): _summed(jobs, links, model, kind, phase) for kind in model.kinds for phase in PHASES}


def _summed(jobs: Jobs, links: Links, model: TracedSizes, kind: str, phase: Phase) -> Array:
    total, one = np.zeros(len(jobs)), np.ones(len(jobs))
    for message in model.layer(kind).messages:
        if message.phase == phase:
            num_bytes = model.at(message.num_bytes, jobs.micro_batch, jobs.tensor)
            total = total + seconds(jobs, links, "all_reduce", num_bytes, jobs.tensor, one)
    return total
