"""Context parallelism: keys and values travel round the ranks that hold the pieces of a sequence."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.groups import message_element_bytes, seconds
from planner.cost.job import Jobs
from planner.cost.unit_costs import Links
from profiles.models.transformer import Array


def layer_seconds(jobs: Jobs, links: Links) -> Array:
    """Seconds of one layer's exchange forward, before any overlap; backward sends twice as much.

    Model: every rank's keys and values reach all others, (c - 1)/c of the whole, as in ring attention.
    Source: Liu et al. 2023 (arXiv 2310.01889).
    """
    model = jobs.model
    kv_heads = np.maximum(model.num_kv_heads / jobs.tensor, 1.0)
    per_token = kv_heads * (model.qk_head_dim + model.v_head_dim)
    whole = jobs.micro_batch * jobs.sequence * per_token * message_element_bytes(jobs)
    return seconds(jobs, links, "all_gather", whole, jobs.context, jobs.tensor)
