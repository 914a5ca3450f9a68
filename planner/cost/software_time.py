"""How the software of each job behaves in time, in columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from planner.cost.factors import Learned
from planner.cost.job import Each, Jobs
from profiles.machines.stacks import Stack
from profiles.models.transformer import Array

# Passes of norms and residuals, which are those of all element-wise kernels where a stack does not say.
OF_NORMS = ("norm_passes", "norm_backward_passes")
EVERY_MICROBATCH = ("reduces_every_microbatch", "gathers_every_microbatch")
COMPILED = ("element_passes", "host_layer_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRules:
    """StackTime's numbers, one per job; flags are 0 or 1."""

    product_slowdown: Array
    selective_product_share: Array
    element_passes: Array
    norm_passes: Array
    norm_backward_passes: Array
    cast_bytes: Array
    score_passes: Array
    loss_bytes: Array
    quantise_bytes: Array
    accumulate_bytes: Array
    optimizer_bytes: Array
    gradient_message_bytes: Array
    parameter_message_bytes: Array
    reduces_every_microbatch: Array
    keeps_in_pipeline: Array
    gathers_every_microbatch: Array
    scatters_pipeline: Array
    host_layer_us: Array
    host_step_ms: Array
    tensor_overlap: Array
    attention_slowdown: Array
    overlaps_shards: Array
    gathers_tensors: Array
    shard_rank_us: Array
    reuse_parameters: Array
    pipeline_action_us: Array
    linears_apart: Array
    gradient_bucket_mib: Array
    owners_send_weights: Array
    accumulates_ends: Array


def rules_of(jobs: Jobs, learned: Learned) -> TimeRules:
    """The rules of every job's stack with what runs taught of it; a compiled job is fused and launches less."""
    columns = {}
    for field in fields(TimeRules):
        if field.name in OF_NORMS:
            continue
        values = _column(jobs.stack, field.name)
        if field.name == "element_passes":
            values = np.where(jobs.model.gated, _column(jobs.stack, "gated_element_passes"), values)
        if field.name in COMPILED:
            compiled = _column(jobs.stack, f"compiled_{field.name}")
            values = np.where(jobs.compiled, np.minimum(compiled, values), values)
        if field.name == "parameter_message_bytes":
            values = np.where(jobs.parameter_bytes > 0, jobs.parameter_bytes, values)
        if field.name in EVERY_MICROBATCH:
            # A pipeline that keeps weights adds whole gradients up and reduces them once.
            values = values * (1 - _column(jobs.stack, "keeps_in_pipeline") * (jobs.pipeline > 1))
        columns[field.name] = values * _multiples(learned, jobs.stack, field.name)
    for name in OF_NORMS:
        own = np.where(jobs.model.gated, _column(jobs.stack, f"gated_{name}"), _column(jobs.stack, name))
        counted = (own > 0) & ~jobs.compiled
        own = own * _multiples(learned, jobs.stack, "element_passes")
        columns[name] = np.where(counted, own, columns["element_passes"])
    return TimeRules(**columns)


def _column(stacks: Each[Stack], name: str) -> Array:
    return stacks.read(lambda stack: float(getattr(stack.time, name)))


def _multiples(learned: Learned, stacks: Each[Stack], number: str) -> Array:
    """What runs taught of a number: of the group of each stack, and of the stack itself beside that."""

    def multiple(stack: Stack) -> float:
        group = learned.groups.get(stack.group, {}).get(number, 1.0)
        return group * learned.stacks.get(stack.name, {}).get(number, 1.0)

    return stacks.read(multiple)
