"""What the executor refuses before anything starts: a plan is obeyed literally or turned down by name."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from executor.axes.task_part import prove_experts, seeded_module, split_of_task
from executor.legality import check_text
from executor.run.own_data import WAYS
from planner.model_facts import ModelFacts
from planner.plans import Plan
from planner.prediction import PlanFile
from profiles.errors import EnvironmentFailure, InputError
from profiles.machines.cores import usable_cores
from profiles.ranks.cuda_setup import too_few_gpus
from profiles.ranks.environment import ranks_per_host
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.precision import unavailable
from profiles.workloads.trust import is_factory
from profiles.workloads.workload import Workload


def facts_of_workload(workload: Workload) -> ModelFacts:
    """What the rules of planner/legality ask, from the model as it will be built."""
    return ModelFacts(
        name=workload.spec.name,
        num_layers=len(workload.layers),
        num_heads=workload.num_heads,
        num_kv_heads=workload.num_kv_heads,
        ffn_size=workload.ffn_size,
        vocab_size=workload.vocab_size,
        tied_embeddings=workload.tied_embeddings,
        can_tensor_parallel=workload.can_tensor_parallel,
        can_pipeline=workload.can_pipeline,
        is_transformer=workload.spec.reads_text,
        num_experts=workload.num_experts if workload.task is None else None,
        adapters=workload.spec.adapters,
        shared_weights=workload.shared_weights,
        is_task=workload.task is not None,
    )


def check_task(plan: Plan, workload: Workload, device_kind: str) -> list[str]:
    """Check what of a plan depends on a task's module, which is built for it; notes on what of it is left whole.

    Raises: PlanError.
    """
    if workload.task is None:
        return []
    notes: list[str] = []
    if plan.expert_parallel > 1 and device_kind == "cpu":
        module = seeded_module(workload.spec, workload.task, 0)
        with foreign_code(workload.spec, f"plan {plan.id} of {workload.spec.title}"):
            prove_experts(module, workload.spec, workload.task, plan.expert_parallel)
    if plan.tensor_parallel > 1 and device_kind == "cpu":
        # Elsewhere ranks find it, and refuse: here it would take as long as steps on a CPU do.
        module = seeded_module(workload.spec, workload.task, 0)
        with foreign_code(workload.spec, f"plan {plan.id} of {workload.spec.title}"):
            left = split_of_task(module, workload.task, plan.tensor_parallel).left_whole
        if left:
            more = f" and {len(left) - 1} more such" if len(left) > 1 else ""
            notes.append(f"plan {plan.id}: on every rank whole: {left[0]}{more}")
    return notes


def check_data(file: PlanFile, workload: Workload, data: str = "") -> None:
    """Check that what is fed fits the model: bytes as tokens, images, or data of its own, whatever that is.

    Raises: InputError where the vocabulary is too small, the sequence too long, or the model does not take tokens and
    no data is given that it does take.
    """
    if workload.task is not None:
        return
    if workload.answers_once:
        if file.sequence_length != workload.max_sequence_length:
            raise InputError(
                f"{workload.spec.name} reads an image as {workload.max_sequence_length} tokens, not "
                f"{file.sequence_length}: plan again with --sequence-length {workload.max_sequence_length}"
            )
        return
    is_module = workload.spec.kind == "module"
    if is_module and (is_factory(data) or data.endswith(".npz")):
        return
    with foreign_code(workload.spec, f"{workload.spec.title}: its example_input fails"):
        example = workload.example_input(1, 8)
    if not isinstance(example, Tensor) or example.dtype not in (torch.int64, torch.int32) or example.dim() != 2:
        raise InputError(
            f"{workload.spec.name} does not take token ids (batch, sequence), as which text is read: {WAYS}"
        )
    check_text(file, workload.spec.name, workload.vocab_size, workload.max_sequence_length, WAYS if is_module else "")


def check_precision(plan: Plan, device_kind: str) -> None:
    """Check that this machine computes in the plan's precision.

    Raises: EnvironmentFailure.
    """
    reason = unavailable(plan.precision, device_kind)
    if reason:
        raise EnvironmentFailure(f"plan {plan.id}: {reason}")


def check_devices(num_ranks: int, device_kind: str, oversubscribe: bool, made_for: str = "") -> bool:
    """Whether this host's ranks share cores; `oversubscribe` allows it, on CPU only.

    `made_for` names what the plan is for where that is another machine, and is said first.

    Raises: EnvironmentFailure where there are fewer devices than ranks.
    """
    num_ranks = ranks_per_host(num_ranks)
    elsewhere = f"the plan was made for {made_for}; try it here with --rehearse, or write a job for there with --emit: "
    first = elsewhere if made_for else ""
    if device_kind == "cuda":
        if reason := too_few_gpus(num_ranks, torch.cuda.device_count(), os.environ):
            raise EnvironmentFailure(f"{first}the plan's {reason}")
        return False
    cores = len(usable_cores())
    if num_ranks > cores and not oversubscribe:
        raise EnvironmentFailure(
            f"{first}the plan needs {num_ranks} ranks, this machine has {cores} cores: plan for {cores}, or pass "
            "--oversubscribe to run it anyway (its times are then not judged)"
        )
    return num_ranks > cores
