"""What a job's file says and its price does not: columns of a table of runs that no field of a plan or model has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from planner.cost.hardware import ELEMENT_BYTES
from planner.space.question import Setting, overlaps_gradients, overlaps_parameters
from planner.stacks.handover import StackJob
from planner.stacks.rows import cells_of, flag

# Of several replicas alone.
OF_REPLICAS = ("overlap_grad", "overlap_param", "gradient_dtype")
# What is measured, or said by the plan's own fields.
NOT_ASKED = ("peak_mem_kind", "dp_shard")
# What every plan is priced with.
USUAL = {
    "etp": "1", "optimizer": "adamw", "moe_dispatcher": "alltoall", "parameter_offload": "no",
    "master_weights": "yes", "reshard_after_forward": "yes", "pipeline_passes_per_step": "1",
}  # fmt: skip
# What is said, and what its price has in place of it, in a sentence.
SENTENCES = {
    ("overlap_grad", "yes"): "gradients are sent after the backward pass, though the file overlaps them "
    "(overlap_grad): no published run shows that they do, so the step may be shorter than predicted",
    ("overlap_grad", "no"): "gradients are sent during the backward pass, though the file sends them after it "
    "(overlap_grad): the step may be longer than predicted",
    ("overlap_param", "yes"): "weights are gathered before the forward pass, though the file overlaps this "
    "(overlap_param): the step may be shorter than predicted",
    ("overlap_param", "no"): "weights are gathered during the forward pass, though the file does so before it "
    "(overlap_param): the step may be longer than predicted",
}


def left_out(job: StackJob, at: Setting) -> Iterator[str]:
    """What the job has otherwise than it is priced, each with what is priced in its place."""
    priced = _priced(job, at)
    has_replicas = job.plan.data_parallel * job.plan.context_parallel > 1
    for name, said in job.cells.items():
        if name in NOT_ASKED or (name in OF_REPLICAS and not has_replicas):
            continue
        own = priced.get(name, "")
        if said == own or (name == "gradient_dtype" and ELEMENT_BYTES.get(said) == ELEMENT_BYTES.get(own)):
            continue
        if (name, said) in SENTENCES and own:
            yield SENTENCES[name, said]
            continue
        yield f"{name}: {said}, priced as {own}" if own else f"{name}: {said}, which is left out of the price"


def _priced(job: StackJob, at: Setting) -> dict[str, str]:
    plan, stack = job.plan, at.stack
    overlaps = bool(overlaps_gradients(at, np.array([plan.zero_stage]))[0])
    sent = stack.time.gradient_message_bytes
    return {
        **USUAL,
        **cells_of(replace(job, cells={}), Path()),
        "overlap_grad": flag(overlaps),
        # Whole weights are gathered by nobody.
        "overlap_param": flag(overlaps_parameters(at)) if plan.zero_stage else job.cells.get("overlap_param", ""),
        "overlap_pp": flag(plan.schedule in stack.habits.hides_messages_of),
        "fused_loss": at.fused_loss or flag(stack.memory.loss_logit_bytes <= stack.memory.fused_logit_bytes),
        "gradient_dtype": at.gradient_dtype or ("fp32" if sent == ELEMENT_BYTES["fp32"] else "bf16"),
        "fp8_recipe": stack.time.fp8_recipe,
        "fp8_param_gather": flag(stack.time.keeps_low_weights and plan.zero_stage > 0),
        "recompute_modules": "core-attention" if plan.recompute == "selective" else "",
    }
