"""Context parallelism: keys and values travel round the ranks that hold pieces of a sequence, or heads go for them."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.groups import message_element_bytes, seconds
from planner.cost.job import Jobs
from planner.cost.unit_costs import Links
from profiles.models.transformer import Array, Flags


def layer_seconds(jobs: Jobs, links: Links) -> Array:
    """Seconds of one layer's messages forward, before any overlap.

    Model: every rank's keys and values reach all others, (c - 1)/c of the whole: in one message that all share, or
    block by block round the ring, each a message between neighbours. Software that exchanges heads sends queries, keys,
    values and what attention gave to all ranks, each a share.
    Source: Liu et al. 2023 (arXiv 2310.01889); Jacobs et al. 2023 (arXiv 2309.14509).
    """
    model, size = jobs.model, message_element_bytes(jobs)
    kv_heads = np.maximum(model.num_kv_heads / jobs.tensor, 1.0)
    per_token = kv_heads * (model.qk_head_dim + model.v_head_dim)
    whole = jobs.micro_batch * jobs.sequence * per_token * size
    around = seconds(jobs, links, "all_gather", whole, jobs.context, jobs.tensor)
    if _passes_blocks(jobs).any():
        block = seconds(jobs, links, "send_receive", whole / jobs.context, jobs.context, jobs.tensor)
        around = np.where(_passes_blocks(jobs), (jobs.context - 1) * block, around)
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


def _passes_blocks(jobs: Jobs) -> Flags:
    return jobs.stack.read(lambda stack: float(stack.time.passes_blocks)) > 0


def hiding_share(jobs: Jobs) -> Array:
    """Share of attention beside which keys and values travel. Shapes: one entry per job.

    Model: while a rank works on one block the next is on its way, and nothing comes while it works on the last; keys
    and values that are gathered at once hide behind the rank's own block alone.
    """
    return np.where(_passes_blocks(jobs), jobs.context - 1, 1.0) / jobs.context
