"""What a teacher costs that stands as its student does: its forward passes, its weights. Also of any model's alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.compression.recipes import FULL_BYTES
from planner.measured.collectives import collective_seconds, group_of
from planner.measured.search import Choices, search
from planner.plans import Plan
from profiles.codecs.codec import FSDP_STAGES
from profiles.machines.profile import MachineProfile
from profiles.models.operators import evaluate
from profiles.models.profile import MIXED, ModelProfile


def forward_seconds(
    machine: MachineProfile, model: ModelProfile, choices: Choices, num_samples: int, tensor_parallel: int = 1
) -> float:
    """Seconds of one forward pass of so many samples on one tensor group, by the machine's own kernels and layers."""
    alone = replace(
        choices, num_devices=tensor_parallel, global_batch_size=num_samples, codecs=("none",), recompute=(0,)
    )
    priced = search(machine, model, alone).priced[0]
    table = priced.table
    is_own = (table.micro_batch_size == num_samples) & (table.tensor_parallel == tensor_parallel)
    row = int(np.flatnonzero(is_own)[0])
    place = int(priced.estimate.layout_index[row])
    stages = priced.shared.stages(priced.estimate.layouts[place], np.array([row]))
    return float(stages.forward_busy.sum())


def teacher_seconds(machine: MachineProfile, model: ModelProfile, choices: Choices, plan: Plan) -> float:
    """The teacher's forward passes of one step, one for each micro-batch of a rank; a sharded one is gathered for each.

    Ignores: that a GPU gathers the next layer while one is at work.
    """
    own = replace(choices, precisions=(plan.precision,))
    of_one = forward_seconds(machine, model, own, plan.micro_batch_size, plan.tensor_parallel)
    if plan.zero_stage in FSDP_STAGES:
        group = group_of(plan.data_parallel, plan.tensor_parallel, machine.devices_per_node)
        num_bytes = _gathered_bytes(plan) * model.num_parameters
        of_one += float(collective_seconds(machine, "all_gather", num_bytes, group)[0])
    return of_one * plan.num_microbatches


def teacher_bytes(model: ModelProfile, choices: Choices, plan: Plan) -> float:
    """The teacher stands as its student does: whole, split, or as shards and the largest layer together.

    Ignores: norms, which tensor parallel does not split.
    """
    held = model.num_parameters / plan.tensor_parallel
    if plan.zero_stage not in FSDP_STAGES:
        return FULL_BYTES * held
    size = (plan.micro_batch_size, choices.sequence_length, plan.tensor_parallel)
    layers = model.layers[plan.precision]
    largest = max(float(evaluate(layer.num_parameters, *size)) for layer in layers)
    return FULL_BYTES * held / plan.data_parallel + _gathered_bytes(plan) * largest


def _gathered_bytes(plan: Plan) -> float:
    return FULL_BYTES / 2 if plan.precision in MIXED else FULL_BYTES
