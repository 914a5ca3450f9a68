"""DeepSpeed's JSON read as a job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from planner.plans import Plan
from planner.schedules.registry import NONE
from planner.stacks import job_files
from planner.stacks.batches import batch_of, devices_of, replicas_from
from planner.stacks.deepspeed.words import (
    BATCH,
    CHECKPOINTS,
    MICRO,
    OFFLOAD,
    OFFLOAD_WEIGHTS,
    SHARDED,
    STACK,
    STAGE,
    STAGES,
    STEPS,
    UNPRICED,
    WORDS,
    check_offload,
    shards_anyway,
)
from planner.stacks.handover import Given, StackJob
from planner.stacks.rows import flag
from planner.stacks.said import Settings
from planner.stacks.words import Facts, read_facts
from profiles.machines.stacks import load_stack

TITLE = "DeepSpeed's configuration (JSON)"
# The stage of ZeRO at which messages overlap unless the file says otherwise.
OVERLAPS_AT = 3
SIGNS = ("zero_optimization", MICRO, BATCH)
# Settings beside plans that have a column in a table of runs, by the word that the column has for their values.
CELLS: dict[str, tuple[str, dict[object, str]]] = {
    "data_types.grad_accum_dtype": ("gradient_dtype", {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}),
    "communication_data_type": ("gradient_dtype", {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}),
    OFFLOAD_WEIGHTS: ("parameter_offload", {"cpu": "yes", "nvme": "yes", "none": "no"}),
}


def recognises(path: Path, text: str) -> bool:
    """Whether a file looks like DeepSpeed's configuration."""
    return path.suffix == ".json" and any(f'"{sign}"' in text for sign in SIGNS) and '"log_history"' not in text


def job_of(settings: Settings, given: Given, assumed: list[str]) -> StackJob:
    """The job that settings of DeepSpeed state.

    Raises: InputError where they contradict each other, or do not say enough.
    """
    path = settings.path
    facts = read_facts(WORDS, settings, assumed)
    check_offload(settings)
    if facts.get("bf16") and facts.get("fp16"):
        raise settings.contradiction(
            ("bf16.enabled", "bfloat16.enabled", "fp16.enabled"), "only one precision can be enabled"
        )
    workload = job_files.known_model(path, given)
    axes = Plan(
        pipeline_parallel=facts.get("stages", 1),
        tensor_parallel=facts.get("tensor_parallel") or 1,
        context_parallel=facts.get("context_parallel", 1),
    )
    devices = devices_of(path, given, 0, axes.num_devices, replicas_from(facts), assumed)
    data = job_files.replicas_of(path, devices, axes)
    batch = batch_of(facts, settings, (BATCH, MICRO, STEPS), data, given, assumed)
    axes = replace(axes, data_parallel=data, micro_batch_size=batch.micro, num_microbatches=batch.count)
    plan = _plan(axes, facts, settings, job_files.blocks_of(workload), assumed)
    if shards_anyway(plan):
        assumed.append(f"{SHARDED}, which is not priced")
    assumed.append(f"the file names no version: read as {job_files.version_of(load_stack(STACK))}")
    return StackJob(
        stack=STACK,
        workload=workload,
        plan=plan,
        num_devices=devices,
        global_batch_size=batch.samples,
        sequence_length=job_files.known_length(path, given),
        attention_kernel=job_files.attention_of(given),
        cells=_cells(settings) | _overlap(facts, plan),
        unpriced=settings.take_known(UNPRICED),
        unread=settings.unread,
        assumed=tuple(assumed),
    )


def _plan(axes: Plan, facts: Facts, settings: Settings, blocks: int, assumed: list[str]) -> Plan:
    """The plan with these degrees and batches.

    Raises: InputError where settings do not go together.
    """
    stages, zero = axes.pipeline_parallel, facts.get("zero_stage", 0)
    if zero > 3:
        raise settings.contradiction((STAGE,), "ZeRO has stages 0 to 3")
    if stages > 1 and zero > 1:
        raise settings.contradiction((STAGES, STAGE), "pipelines work with ZeRO stages 0 and 1 only")
    if settings.take(OFFLOAD) == "nvme":
        assumed.append("states on NVMe are priced as if in the host's memory")
    recomputed = facts.get("recomputed", 0)
    if recomputed and recomputed != blocks:
        assumed.append(f"{settings.find(CHECKPOINTS)}: all {blocks} blocks are assumed to be recomputed")
    if not recomputed and settings.has("activation_checkpointing"):
        assumed.append("nothing is recomputed: activation_checkpointing says how, not whether")
    return replace(
        axes,
        stage_bounds=job_files.even_bounds(blocks, stages) if stages > 1 else (0,),
        schedule="1f1b" if stages > 1 else NONE,
        zero_stage=zero if axes.data_parallel * axes.context_parallel > 1 else 0,
        recompute="full" if recomputed else "none",
        offload=facts.get("offload", "none"),
        precision=facts.get("bf16") or facts.get("fp16") or "fp32",
    )


def _cells(settings: Settings) -> dict[str, str]:
    cells: dict[str, str] = {}
    for key, (column, words) in CELLS.items():
        value = settings.take(key)
        if isinstance(value, str | bool) and value in words:
            cells[column] = words[value]
    return cells


def _overlap(facts: Facts, plan: Plan) -> dict[str, str]:
    """Whether gradients are sent beside the backward pass: as the file says, else as usual, at stage 3 alone."""
    if not plan.zero_stage or plan.pipeline_parallel > 1:
        return {}
    return {"overlap_grad": flag(facts.get("overlaps", plan.zero_stage == OVERLAPS_AT))}
