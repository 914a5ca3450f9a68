"""A plan as Accelerate and transformers' Trainer are given it: YAML, TrainingArguments, a script, the launch line."""

from __future__ import annotations

from typing import Any

import yaml

from planner.plans import Plan
from planner.prediction import Candidate, PlanFile
from planner.stacks import job_files
from planner.stacks.accelerate.words import ARGUMENT_WORDS, STACK, YAML_WORDS
from planner.stacks.handover import Handover
from planner.stacks.said import nested
from planner.stacks.unsized import unsaid_notes
from planner.stacks.words import Facts, written
from profiles.errors import PlanError
from profiles.machines.stacks import Stack

CONFIG, ARGUMENTS = "accelerate.yaml", "training_arguments.json"


def export(file: PlanFile, candidate: Candidate) -> Handover:
    """A plan for Accelerate.

    Raises: PlanError where it has no word for something in the plan.
    """
    stack, plan = job_files.stack_of(STACK, file, candidate), candidate.plan
    return Handover(
        stack=STACK,
        version=job_files.version_of(stack),
        files={
            CONFIG: f"# {job_files.written_by(stack)}\n{yaml.safe_dump(config(file, plan), sort_keys=False)}",
            ARGUMENTS: job_files.as_json(arguments(file, plan, stack)),
            job_files.MODEL_FILE: job_files.model_json(file, stack),
            job_files.JOB_FILE: job_files.job_json(file, stack, attention=job_files.attention_word(file)),
            "job.py": job_files.script("job.py", stack),
            "train.py": job_files.script("train_accelerate.py", stack),
        },
        command=_launch(file),
        notes=(
            job_files.ADD_DATA,
            job_files.ADD_OPTIMIZER_OF_CLIPPING,
            *job_files.steps_notes(file),
            *unsaid_notes(file.workload),
            *_node_notes(file),
        ),
    )


def config(file: PlanFile, plan: Plan) -> dict[str, Any]:
    """Accelerate's configuration of a plan."""
    more: dict[str, Any] = {"compute_environment": "LOCAL_MACHINE", "rdzv_backend": "static"}
    facts = facts_of(file, plan)
    if facts["kind"] == "fsdp":
        more["fsdp_config.fsdp_auto_wrap_policy"] = "TRANSFORMER_BASED_WRAP"
        more["fsdp_config.fsdp_state_dict_type"] = "SHARDED_STATE_DICT"
    return nested({**more, **written(YAML_WORDS, facts)})


def arguments(file: PlanFile, plan: Plan, stack: Stack) -> dict[str, Any]:
    """What transformers' Trainer is told beside."""
    return {
        "run_name": job_files.written_by(stack),
        "output_dir": "out",
        **written(ARGUMENT_WORDS, facts_of(file, plan)),
        "max_steps": job_files.steps_of(file),
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
        "optim": "adamw_torch_fused",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


def facts_of(file: PlanFile, plan: Plan) -> Facts:
    """What Accelerate and the Trainer are told of a plan."""
    nodes, _ = job_files.nodes_of(file)
    is_sharded = plan.zero_stage > 0
    shards = plan.shard_degree or plan.data_parallel
    recompute = plan.recompute if plan.recompute == "full" else None
    kind = "fsdp" if is_sharded else "replicas" if plan.num_devices > 1 else "one"
    facts: Facts = {
        "devices": plan.num_devices, "nodes": nodes, "kind": kind, "precision": plan.precision,
        "micro_batch_size": plan.micro_batch_size, "num_microbatches": plan.num_microbatches,
        "bf16": plan.precision, "fp16": plan.precision, "recompute_replicas": None if is_sharded else recompute,
    }  # fmt: skip
    if is_sharded:
        facts |= {
            "fsdp_version": 2, "zero_stage": plan.zero_stage, "recompute": recompute, "shards": shards,
            "replicas": plan.data_parallel // shards, "context_parallel": plan.context_parallel,
        }  # fmt: skip
    return facts


def _launch(file: PlanFile) -> str:
    nodes, _ = job_files.nodes_of(file)
    where = "" if nodes == 1 else (
        f' --machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR" --main_process_port {job_files.PORT}'
    )  # fmt: skip
    return f"accelerate launch --config_file {CONFIG}{where} train.py"


def _node_notes(file: PlanFile) -> tuple[str, ...]:
    nodes, per_node = job_files.nodes_of(file)
    if nodes * per_node != file.num_devices:
        raise PlanError(
            f"{file.num_devices} devices do not fill nodes of {per_node}: Accelerate starts as many on each"
        )
    more = "NODE_RANK counts the nodes from 0"
    return (*job_files.node_notes(file), more) if nodes > 1 else ()
