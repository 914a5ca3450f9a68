"""A plan as DeepSpeed is given it: its JSON, a script that builds the model, the launch line."""

from __future__ import annotations

from typing import Any

from planner.plans import Plan
from planner.prediction import Candidate, PlanFile
from planner.stacks import job_files
from planner.stacks.deepspeed.words import BUCKET, OVERLAP, SHARDED, STACK, UNCLIPPED, WORDS, facts_of, shards_anyway
from planner.stacks.handover import Handover
from planner.stacks.said import nested
from planner.stacks.unsized import unsaid_notes
from planner.stacks.words import Facts, written
from profiles.codecs.codec import FSDP_STAGES
from profiles.errors import PlanError
from profiles.machines.stacks import Stack

CONFIG = "ds_config.json"
OVERLAPPING_BUCKET = 250_000_000


def export(file: PlanFile, candidate: Candidate) -> Handover:
    """A plan for DeepSpeed.

    Raises: PlanError where it has no word for something in the plan.
    """
    stack, plan = job_files.stack_of(STACK, file, candidate), candidate.plan
    _refuse(file, plan)
    return Handover(
        stack=STACK,
        version=job_files.version_of(stack),
        files={
            CONFIG: job_files.as_json(config(file, plan, stack)),
            job_files.MODEL_FILE: job_files.model_json(file, stack),
            job_files.JOB_FILE: job_files.job_json(file, stack, attention=job_files.attention_word(file)),
            "job.py": job_files.script("job.py", stack),
            "train.py": job_files.script("train_deepspeed.py", stack),
        },
        command=job_files.torchrun(file, f"train.py{job_files.steps_words(file)}"),
        notes=(
            *_notes(plan),
            job_files.ADD_DATA,
            job_files.ADD_OPTIMIZER,
            *job_files.steps_notes(file),
            *unsaid_notes(file.workload),
            *job_files.node_notes(file),
        ),
    )


def config(file: PlanFile, plan: Plan, stack: Stack) -> dict[str, Any]:
    """DeepSpeed's configuration of a plan."""
    words = written(WORDS, _facts(file, plan, stack))
    if words.get(OVERLAP):
        # Two buckets of half the usual size, for the memory that the plan says.
        words[BUCKET] = OVERLAPPING_BUCKET
    return {
        "_written_by": job_files.written_by(stack),
        **nested(words),
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}},
        **UNCLIPPED,
    }


def _facts(file: PlanFile, plan: Plan, stack: Stack) -> Facts:
    """What DeepSpeed is told of a plan and of the script's model; of messages what the plan was priced with."""
    is_piped = plan.pipeline_parallel > 1
    overlaps = stack.habits.overlaps_gradients and (stack.time.overlaps_shards or plan.zero_stage < min(FSDP_STAGES))
    return {
        **facts_of(plan),
        "overlaps": overlaps if plan.zero_stage and not is_piped else None,
        "stages": plan.pipeline_parallel if is_piped else None,
        "recomputed": job_files.blocks_of(file.workload) if plan.recompute == "full" else None,
    }


def _refuse(file: PlanFile, plan: Plan) -> None:
    """Refuse what neither DeepSpeed nor the script does.

    Raises: PlanError.
    """
    if plan.offload == "optimizer" and plan.zero_stage == 0 and plan.data_parallel > 1:
        raise PlanError(f"plan {plan.id}: DeepSpeed only offloads what ZeRO shards, use ZeRO 1 to 3 or offload=none")
    if plan.recompute == "full" and not job_files.blocks_of(file.workload):
        raise PlanError(f"plan {plan.id}: {file.model_name} does not say how many blocks it has, use recompute=none")
    if plan.pipeline_parallel > 1 and job_files.task_of(file.workload) != "causal-lm":
        raise PlanError(f"plan {plan.id}: stages are written for language models only, use pipeline_parallel=1")


def _notes(plan: Plan) -> tuple[str, ...]:
    notes = ["the first start compiles operators: set TORCH_EXTENSIONS_DIR to a permanent folder"]
    if plan.offload == "optimizer":
        notes.append("offloaded states need the host memory that the plan names, pinned (ulimit -l)")
    if plan.data_parallel > 1 and (not plan.zero_stage or plan.pipeline_parallel > 1):
        notes.append("priced with gradients sent during the backward pass; without ZeRO, or in pipelines, they are not")
    if plan.zero_stage == max(FSDP_STAGES):
        notes.append("overlap_comm is off, as priced: also try true")
    if shards_anyway(plan):
        notes.append(SHARDED)
    return tuple(notes)
