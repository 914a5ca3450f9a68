"""Expert parallelism: tokens travel to the ranks that hold their experts, and back."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.groups import message_element_bytes, seconds
from planner.cost.job import Jobs
from planner.cost.unit_costs import Links
from profiles.models.transformer import Array


def layer_seconds(jobs: Jobs, links: Links) -> Array:
    """Seconds of dispatching and combining in one layer, in one direction.

    Model: two all-to-alls of a copy of each token per expert it goes to, under balanced routing; with expert tensor
    parallelism the copies are gathered before and summed after as well.
    """
    copies = jobs.tokens / jobs.tensor * np.maximum(jobs.model.experts_per_token, 0.0)
    num_bytes = copies * jobs.model.hidden_size * message_element_bytes(jobs)
    travelled = 2 * seconds(jobs, links, "all_to_all", num_bytes, jobs.expert, jobs.expert_tensor)
    whole = num_bytes * jobs.expert_tensor
    one = np.ones(len(jobs))
    split = seconds(jobs, links, "all_gather", whole, jobs.expert_tensor, one) + seconds(
        jobs, links, "reduce_scatter", whole, jobs.expert_tensor, one
    )
    return np.where(jobs.model.is_moe, travelled + split, 0.0)
