"""How the software of each job behaves in time, in columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from planner.cost.factors import ALL, PRODUCT_NUMBER, Learned
from planner.cost.job import Each, Jobs
from profiles.machines.stacks import Stack
from profiles.models.transformer import Array

EVERY_MICROBATCH = ("reduces_every_microbatch", "gathers_every_microbatch")
COMPILED = ("host_layer_us",)
# What runs alone tell of a stack: memory traffic of its element-wise kernels over what is counted of them.
LEARNED = ("element_passes",)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRules:
    """StackTime's numbers, one per job; flags are 0 or 1. `element_passes` are learned, 1 as counted."""

    product_slowdown: Array
    selective_product_share: Array
    element_passes: Array
    cast_bytes: Array
    score_passes: Array
    loss_bytes: Array
    accumulate_bytes: Array
    optimizer_bytes: Array
    unscale_bytes: Array
    gradient_message_bytes: Array
    parameter_message_bytes: Array
    reduces_every_microbatch: Array
    keeps_in_pipeline: Array
    gathers_every_microbatch: Array
    scatters_pipeline: Array
    host_layer_us: Array
    host_step_ms: Array
    tensor_overlap: Array
    hides_input_gradients: Array
    overlaps_shards: Array
    gathers_tensors: Array
    shard_rank_us: Array
    gather_copy_bytes: Array
    scatter_copy_bytes: Array
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
        values = np.ones(len(jobs)) if field.name in LEARNED else _column(jobs.stack, field.name)
        if field.name in COMPILED:
            compiled = _column(jobs.stack, f"compiled_{field.name}")
            values = np.where(jobs.compiled, np.minimum(compiled, values), values)
        if field.name == "parameter_message_bytes":
            values = np.where(jobs.parameter_bytes > 0, jobs.parameter_bytes, values)
        if field.name in EVERY_MICROBATCH:
            # A pipeline that keeps weights adds whole gradients up and reduces them once.
            values = values * (1 - _column(jobs.stack, "keeps_in_pipeline") * (jobs.pipeline > 1))
        columns[field.name] = values * _multiples(learned, jobs.stack, field.name)
    columns[PRODUCT_NUMBER] = columns[PRODUCT_NUMBER] * _of_products(learned, jobs)
    return TimeRules(**columns)


def _column(stacks: Each[Stack], name: str) -> Array:
    return stacks.read(lambda stack: float(getattr(stack.time, name)))


def _multiples(learned: Learned, stacks: Each[Stack], number: str) -> Array:
    """What runs taught of a number: of all stacks, of each one's group, and of the stack itself beside that."""

    def multiple(stack: Stack) -> float:
        group = learned.everyone.get(number, 1.0) * learned.groups.get(stack.group, {}).get(number, 1.0)
        return group * learned.stacks.get(stack.learned_as, {}).get(number, 1.0)

    return stacks.read(multiple)


def _of_products(learned: Learned, jobs: Jobs) -> Array:
    """What runs taught of products on the generation of each device, and at each precision there."""
    result = jobs.device.read(lambda device: learned.products.get(device.generation, {}).get(ALL, 1.0))
    for generation in {device.generation for device in jobs.device.values} & set(learned.products):
        own = jobs.device.read(lambda device: float(device.generation == generation)) > 0  # noqa: B023
        for precision, multiple in learned.products[generation].items():
            if precision != ALL:
                result = np.where(own & (jobs.precision == precision), result * multiple, result)
    return result
