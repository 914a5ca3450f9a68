"""What a teacher costs that stands as its student does: its forward passes, its weights."""

from __future__ import annotations

import numpy as np

from planner.compression.forward import forward_seconds, job_of, learned_for
from planner.compression.recipes import FULL_BYTES
from planner.cost.axes.data import stage_parameters
from planner.cost.axes.groups import replica_seconds
from planner.cost.axes.pipeline import stage_counts
from planner.cost.job import Jobs
from planner.cost.links import links_of
from planner.plans import Plan
from planner.space.question import Setting
from profiles.codecs.codec import FSDP_STAGES
from profiles.models.profile import MIXED


def teacher_seconds(at: Setting, plan: Plan) -> float:
    """The teacher's forward passes of one step, one for each micro-batch of a rank; a sharded one is gathered for each.

    Ignores: that a GPU gathers the next layer while one is at work.
    """
    job, learned = job_of(at, plan), learned_for(at)
    seconds = forward_seconds(job, learned)
    if plan.zero_stage in FSDP_STAGES:
        num_bytes = np.array([_gathered_bytes(plan) * _parameters_held(job)])
        size = np.array([float(_num_shards(plan))])
        gathered = replica_seconds(job, links_of(job), "all_gather", num_bytes, size, job.tensor)
        seconds += float(gathered[0]) * learned.factors.data_comm
    return seconds * plan.num_microbatches


def teacher_bytes(at: Setting, plan: Plan) -> float:
    """The teacher stands as its student does: whole, split, or as shards and the largest layer together.

    Ignores: norms, which tensor parallel does not split.
    """
    job = job_of(at, plan)
    held = _parameters_held(job)
    if plan.zero_stage not in FSDP_STAGES:
        return FULL_BYTES * held
    model, split = job.model, job.vocabulary_split
    units = (
        model.dense_layer_parameters / job.tensor,
        model.embedding_parameters / split,
        model.head_parameters / split,
    )
    largest = max(float(unit[0]) for unit in units)
    return FULL_BYTES * held / _num_shards(plan) + _gathered_bytes(plan) * largest


def _parameters_held(job: Jobs) -> float:
    """Parameters that a rank works with."""
    return float(stage_parameters(job, stage_counts(job)).total[0])


def _num_shards(plan: Plan) -> int:
    return plan.shard_degree or plan.data_parallel


def _gathered_bytes(plan: Plan) -> float:
    return FULL_BYTES / 2 if plan.precision in MIXED else FULL_BYTES
