"""Context parallelism: keys and values travel round the ranks that hold pieces of a sequence, or heads go for them."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.groups import message_element_bytes, seconds
from planner.cost.job import Jobs
from planner.cost.unit_costs import Links
from profiles.models.transformer import Array, Flags


def layer_seconds(jobs: Jobs, links: Links) -> Array:
    """Seconds of one layer's messages forward, before any overlap.

    Model: every rank's keys and values reach all others, (c - 1)/c of the whole, as in ring attention. Software that
    exchanges heads sends queries, keys, values and what attention gave to all ranks, each a share.
    Source: Liu et al. 2023 (arXiv 2310.01889); Jacobs et al. 2023 (arXiv 2309.14509).
    """
    model, size = jobs.model, message_element_bytes(jobs)
    kv_heads = np.maximum(model.num_kv_heads / jobs.tensor, 1.0)
    per_token = kv_heads * (model.qk_head_dim + model.v_head_dim)
    whole = jobs.micro_batch * jobs.sequence * per_token * size
    around = seconds(jobs, links, "all_gather", whole, jobs.context, jobs.tensor)
    if not exchanges_heads(jobs).any():
        return around
    heads = model.num_heads / jobs.tensor
    widths = (
        heads * model.qk_head_dim,
        kv_heads * model.qk_head_dim,
        kv_heads * model.v_head_dim,
        heads * model.v_head_dim,
    )
    sent = [seconds(jobs, links, "all_to_all", jobs.tokens * own * size, jobs.context, jobs.tensor) for own in widths]
    return np.where(exchanges_heads(jobs), np.sum(sent, axis=0), around)


def exchanges_heads(jobs: Jobs) -> Flags:
    """Whether ranks compute whole sequences of some heads, and not parts of all. Shapes: one entry per job."""
    return jobs.stack.read(lambda stack: float(stack.time.exchanges_heads)) > 0
