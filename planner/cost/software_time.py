"""How the software of each job behaves in time, from its stack's catalogue entry, in columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from planner.cost.factors import Learned
from planner.cost.job import Jobs, Names
from profiles.machines.stacks import load_stack
from profiles.models.transformer import Array

COMPILED = ("element_passes", "host_layer_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRules:
    """StackTime's numbers, one per job; flags are 0 or 1."""

    product_slowdown: Array
    selective_product_share: Array
    element_passes: Array
    score_passes: Array
    loss_bytes: Array
    quantise_bytes: Array
    accumulate_bytes: Array
    optimizer_bytes: Array
    gradient_message_bytes: Array
    parameter_message_bytes: Array
    reduces_every_microbatch: Array
    scatters_pipeline: Array
    host_layer_us: Array
    host_step_ms: Array
    tensor_overlap: Array
    attention_slowdown: Array


def rules_of(jobs: Jobs, learned: Learned) -> TimeRules:
    """The rules of every job's stack with what runs taught of it; a compiled job is fused and launches less."""
    unique, inverse = np.unique(jobs.stack, return_inverse=True)
    stacks = [load_stack(str(name)).time for name in unique]
    columns = {}
    for field in fields(TimeRules):
        values = np.array([float(getattr(stack, field.name)) for stack in stacks])[inverse]
        if field.name == "element_passes":
            gated = np.array([stack.gated_element_passes for stack in stacks])[inverse]
            values = np.where(jobs.model.gated, gated, values)
        if field.name in COMPILED:
            compiled = np.array([float(getattr(stack, f"compiled_{field.name}")) for stack in stacks])[inverse]
            values = np.where(jobs.compiled, np.minimum(compiled, values), values)
        columns[field.name] = values * _multiples(learned, unique, field.name)[inverse]
    return TimeRules(**columns)


def _multiples(learned: Learned, names: Names, number: str) -> Array:
    """What runs taught of a number: of the group of each stack, and of the stack itself beside that."""
    result = []
    for name in names:
        group = learned.groups.get(load_stack(str(name)).group, {}).get(number, 1.0)
        result.append(group * learned.stacks.get(str(name), {}).get(number, 1.0))
    return np.array(result)
