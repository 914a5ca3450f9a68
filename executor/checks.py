"""What the executor refuses before anything starts: a plan is obeyed literally or turned down by name."""

from __future__ import annotations

import os

import torch

from planner.plan import Plan
from planner.prediction import PlanFile
from profiles.codecs import codec
from profiles.errors import EnvironmentFailure, InputError, PlanError
from profiles.workloads import Workload

PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("none", "gpipe", "1f1b")
BYTE_VALUES = 256
# Choices that are priced but not carried out yet: the one value that runs.
ONLY_PLANNED: dict[str, object] = {
    "context_parallel": 1,
    "expert_parallel": 1,
    "shard_degree": 0,
    "sequence_parallel": False,
    "vocab_parallel": False,
    "virtual_stages": 1,
    "recompute_layers": (),
    "offload": "none",
    "compiled": False,
}
RECOMPUTE = ("none", "full")


def check_plan(plan: Plan, file: PlanFile, workload: Workload) -> None:
    """Check that `plan` can be carried out on this model with this many ranks.

    Raises: PlanError that names the field, its value and the rule.
    """
    plan.check(len(workload.layers))
    _check_names(plan)
    if plan.num_devices != file.num_devices:
        raise PlanError(f"plan {plan.id} is for {plan.num_devices} devices, its file for {file.num_devices}")
    if plan.global_batch_size != file.global_batch_size:
        raise PlanError(
            f"plan {plan.id} takes {plan.global_batch_size} samples per step, its file {file.global_batch_size}"
        )
    if plan.tensor_parallel > 1:
        _check_tensor_parallel(plan, workload)
    if plan.pipeline_parallel > 1 and not workload.can_pipeline:
        raise PlanError(
            f"plan pipeline_parallel={plan.pipeline_parallel}: {workload.spec.name} cannot be cut into stages "
            "(tied embeddings, or a single layer)"
        )
    if plan.schedule == "1f1b" and plan.num_microbatches < plan.pipeline_parallel:
        raise PlanError(
            f"plan num_microbatches={plan.num_microbatches}: 1f1b needs at least one per stage, "
            f"{plan.pipeline_parallel}"
        )


def _check_names(plan: Plan) -> None:
    if plan.precision not in PRECISIONS:
        raise PlanError(f"plan precision={plan.precision}: the executor knows {', '.join(PRECISIONS)}")
    if plan.schedule not in SCHEDULES:
        raise PlanError(f"plan schedule={plan.schedule}: the executor knows {', '.join(SCHEDULES)}")
    if plan.recompute not in RECOMPUTE:
        raise PlanError(f"plan recompute={plan.recompute}: the executor knows {', '.join(RECOMPUTE)}")
    if plan.zero_stage:
        raise PlanError(f"plan zero_stage={plan.zero_stage}: planned only, the executor runs stage 0")
    for name, runs in ONLY_PLANNED.items():
        if getattr(plan, name) != runs:
            raise PlanError(f"plan {name}={getattr(plan, name)}: planned only, the executor runs {name}={runs}")
    if codec(plan.codec).lossy and plan.data_parallel == 1:
        raise PlanError(f"plan codec={plan.codec} with data_parallel=1: no gradients are sent that it could compress")


def _check_tensor_parallel(plan: Plan, workload: Workload) -> None:
    degree = plan.tensor_parallel
    if not workload.can_tensor_parallel:
        raise PlanError(f"plan tensor_parallel={degree}: {workload.spec.name} does not say how its linears are split")
    for what in ("num_heads", "num_kv_heads", "ffn_size"):
        size = getattr(workload, what)
        if size % degree:
            raise PlanError(f"plan tensor_parallel={degree}: {what}={size} of {workload.spec.name} is no multiple")


def check_data(file: PlanFile, workload: Workload) -> None:
    """Check that bytes as tokens fit the model.

    Raises: InputError where the vocabulary is too small, the sequence too long, or the model does not take tokens.
    """
    if workload.vocab_size < BYTE_VALUES:
        raise InputError(
            f"{workload.spec.name} has a vocabulary of {workload.vocab_size}: text is fed as bytes, which needs "
            f"at least {BYTE_VALUES}"
        )
    longest = workload.max_sequence_length
    if longest and file.sequence_length > longest:
        raise InputError(
            f"sequences of {file.sequence_length} tokens are longer than the {longest} of {workload.spec.name}"
        )
    example = workload.example_input(1, 8)
    if example.dtype not in (torch.int64, torch.int32) or example.dim() != 2:
        raise InputError(f"{workload.spec.name} does not take token ids (batch, sequence): the executor feeds text")


def check_devices(num_ranks: int, device_kind: str, oversubscribe: bool) -> bool:
    """Whether ranks share cores; `oversubscribe` allows it, on CPU only.

    Raises: EnvironmentFailure where there are fewer devices than ranks.
    """
    if device_kind == "cuda":
        present = torch.cuda.device_count()
        if num_ranks > present:
            raise EnvironmentFailure(f"the plan needs {num_ranks} GPUs, this machine has {present}: plan for {present}")
        return False
    cores = len(os.sched_getaffinity(0))
    if num_ranks > cores and not oversubscribe:
        raise EnvironmentFailure(
            f"the plan needs {num_ranks} ranks, this machine has {cores} cores: plan for {cores}, or pass "
            "--oversubscribe to run it all the same (its times are then not judged)"
        )
    return num_ranks > cores
