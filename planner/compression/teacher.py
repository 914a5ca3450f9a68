"""What a teacher costs that stands as its student does: its forward passes, its weights."""

from __future__ import annotations

import numpy as np

from planner.compression.forward import forward_seconds, job_of, learned_for
from planner.compression.recipes import FULL_BYTES
from planner.cost.axes.data import stage_parameters
from planner.cost.axes.groups import replica_seconds
from planner.cost.axes.pipeline import stage_counts
from planner.cost.job import Jobs
from planner.cost.layers import SHARDED
from planner.cost.links import links_of
from planner.plans import Plan
from planner.space.question import Setting
from profiles.codecs.codec import FSDP_STAGES
from profiles.models.profile import MIXED
from profiles.models.transformer import Array


def teacher_seconds(at: Setting, plan: Plan) -> float:
    """The teacher's forward passes of one step, one for each micro-batch of a rank; a sharded one is gathered for each.

    Ignores: that a GPU gathers the next layer while one is at work.
    """
    job, learned = job_of(at, plan), learned_for(at)
    seconds = forward_seconds(job, learned)
    if plan.zero_stage in FSDP_STAGES:
        num_bytes = _gathered_bytes(job) * _parameters_held(job)
        gathered = replica_seconds(job, links_of(job), "all_gather", num_bytes, _num_shards(job), job.tensor)
        seconds += float(gathered[0]) * learned.factors.data_comm
    return seconds * plan.num_microbatches


def teacher_bytes(jobs: Jobs) -> Array:
    """Bytes of a teacher that stands as its student does: whole, split, or as shards and the largest layer together.

    `jobs` are the teacher's model on the student's ranks. Shapes: one entry per job.
    Ignores: norms, which tensor parallel does not split.
    """
    model, split, held = jobs.model, jobs.vocabulary_split, _parameters_held(jobs)
    ends = np.maximum(model.embedding_parameters, model.head_parameters) / split
    largest = np.maximum(model.dense_layer_parameters / jobs.tensor, ends)
    sharded = FULL_BYTES * held / _num_shards(jobs) + _gathered_bytes(jobs) * largest
    return np.where(np.isin(jobs.zero_stage, FSDP_STAGES), sharded, FULL_BYTES * held)


def _parameters_held(jobs: Jobs) -> Array:
    """Parameters that a rank works with."""
    return stage_parameters(jobs, stage_counts(jobs)).total


def _num_shards(jobs: Jobs) -> Array:
    """Over how many ranks a teacher is sharded, also where the student is by ZeRO stage 2."""
    return np.where(jobs.zero_stage == SHARDED, jobs.shard, jobs.data)


def _gathered_bytes(jobs: Jobs) -> Array:
    """Bytes of a parameter on its way, and of a gathered one."""
    return np.where(np.isin(jobs.precision, MIXED), FULL_BYTES / 2, FULL_BYTES)
