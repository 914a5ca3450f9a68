"""`executor.apply`: a plan carried out on a user's own module."""

from __future__ import annotations

import functools
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from executor.applied import AppliedPlan
from executor.legality import check_plan, choose
from executor.mesh import Meshes
from executor.micro_batches import first_micro_batch, has_samples
from executor.rank_model import RankModel
from executor.run.checks import check_devices, check_precision, facts_of_workload
from executor.run.subject import workload_of_task
from planner.legality import refusal
from planner.plans import Plan
from planner.prediction import Candidate, PlanFile
from profiles import artifacts
from profiles.errors import EnvironmentFailure, InputError, PlanError
from profiles.machines.fingerprint import current_device_kind
from profiles.models.profile import WorkloadSpec
from profiles.ranks.devices import gpu_key, own_device
from profiles.ranks.environment import in_job, join_slurm
from profiles.ranks.rank import TIMEOUT_SECONDS, Rank, enter_group, job_store
from profiles.ranks.stores import stay_on_this_host
from profiles.units import format_count
from profiles.workloads.meta_values import on_meta
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.task import Batch, Task, module_loss
from profiles.workloads.workload import Workload


def apply(
    plan: str | Path | PlanFile | Plan,
    model: nn.Module,
    *,
    loss: Callable[[nn.Module, Batch], Tensor] = module_loss,
    example: Batch | None = None,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> AppliedPlan:
    """Carry out a plan on `model`, which is changed in place, in a job that torchrun or srun started.

    Every rank gives the same module with the same weights. The process group is joined unless there is one.

    * `plan`: a plan file, of which the best plan that can be run is taken, or one plan.
    * `model`: the module as its author wrote it.
    * `loss`: `loss(module, batch)`, a scalar; by default what the module returns as `loss`, or first.
    * `example`: a batch, which stages, splits and modules that leave parameters without a gradient need; of as many
      samples as there are: pipelines alone need those of a micro-batch at least.
    * `weights`: for a module on the meta device, a local folder of safetensors; nothing is downloaded.
    * `device`: where the rank computes; by default its GPU, or the CPU where there is none.
    * `seed`: what random numbers of a step, and weights that are made here, begin with.
    * `timeout_seconds`: how long ranks wait for each other before they give up.

    A module on the meta device is given the values of this rank alone, with no more than one block whole at a time: of
    `weights`, or of its own code, `_init_weights` or `reset_parameters`, with random numbers by `seed` and position.
    These are the same on all ranks and layouts, and others than of a module that is built with weights. What the folder
    lacks is initialised, with a warning. A split over ranks is first found and proven on the whole, in host memory.

    Raises: PlanError where the plan is of another model or cannot be carried out on a module as it is; InputError,
    ArtifactError, EnvironmentFailure.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"apply(plan, model): the model is a {type(model).__name__}, not an nn.Module")
    if weights is not None and not on_meta(model):
        raise InputError(
            f"weights={str(weights)!r} is for a module on the meta device: {type(model).__name__} has weights already"
        )
    chosen, candidate, file = _chosen(plan)
    task = _task(model, loss, example, chosen, weights)
    workload = _workload(model, task)
    _check(chosen, file, workload, model, example)
    rank, owns_group = _joined(chosen, device, timeout_seconds)
    if rank.num_ranks > 1 and not on_meta(model):
        _check_alike(model)
    mesh = _meshes(dist.group.WORLD, rank.device.type, timeout_seconds).of(chosen) if rank.num_ranks > 1 else None
    placed = RankModel(chosen, workload, rank, seed, mesh)
    return AppliedPlan(chosen, model, placed, rank, seed=seed, candidate=candidate, owns_group=owns_group)


def _chosen(plan: str | Path | PlanFile | Plan) -> tuple[Plan, Candidate | None, PlanFile | None]:
    if isinstance(plan, Plan):
        return plan, None, None
    file = plan if isinstance(plan, PlanFile) else artifacts.read(Path(plan), "plan", PlanFile)
    (best, *_), _ = choose(file, 1, with_baseline=False)
    return file.candidates[best].plan, file.candidates[best], file


def _task(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    example: Batch | None,
    plan: Plan,
    weights: str | Path | None,
) -> Task:
    def batches(step: int, samples: int) -> list[Any]:
        # One "sample" is a whole micro-batch: a user's batch is cut, never put together.
        return [] if example is None else [first_micro_batch(example, plan.micro_batch_size, plan.num_microbatches)]

    return Task(
        name=type(model).__name__,
        build=lambda: model,
        example=lambda samples, size: batches(0, samples)[0],
        batches=batches,
        collate=lambda parts: parts[0],
        loss=loss,
        weights="" if weights is None else str(weights),
    )


def _workload(model: nn.Module, task: Task) -> Workload:
    kind = type(model)
    spec = WorkloadSpec(
        kind="module", name=kind.__name__, factory=f"{kind.__module__}:{kind.__qualname__}", task=task.name
    )
    blocks = repeated_blocks(model)
    return workload_of_task(spec, task, len(blocks) + 2 if blocks else 1)


def _check(plan: Plan, file: PlanFile | None, workload: Workload, model: nn.Module, example: Batch | None) -> None:
    name, own = type(model).__name__, sum(parameter.numel() for parameter in model.parameters())
    if file is not None:
        if file.num_parameters != own:
            raise PlanError(
                f"the plan is for {file.model_name} of {format_count(file.num_parameters)} parameters, {name} has "
                f"{format_count(own)}: plan for this module"
            )
        check_plan(plan, file, facts_of_workload(workload))
    else:
        plan.check(len(workload.layers))
        if reason := refusal(plan, facts_of_workload(workload), 1):
            raise PlanError(reason)
    for degree, what in ((plan.pipeline_parallel, "what crosses the stages"), (plan.tensor_parallel, "what is split")):
        if degree > 1 and example is None:
            raise PlanError(f"plan {plan.id}: {what} of {name} can only be seen in a batch: give example=batch")
    size, count = plan.micro_batch_size, plan.num_microbatches
    if plan.pipeline_parallel > 1 and not has_samples(first_micro_batch(example, size, count), size):
        raise InputError(
            f"example=batch: the tensors between stages can only be seen in a micro-batch: give at least {size} samples"
        )


def _joined(plan: Plan, device: str | torch.device | None, timeout_seconds: float) -> tuple[Rank, bool]:
    """This process's place in the job, and whether its group is ours to leave."""
    asked = None if device is None else torch.device(device)
    kind = current_device_kind() if asked is None else asked.type
    check_precision(plan, kind)
    starts_group = not dist.is_initialized() and in_job()
    if starts_group:
        join_slurm()
    count = dist.get_world_size() if dist.is_initialized() else int(os.environ["WORLD_SIZE"]) if starts_group else 1
    if count != plan.num_devices:
        raise PlanError(
            f"plan {plan.id} is for {plan.num_devices} ranks, the job has {count}: start as many with torchrun"
        )
    if starts_group:
        stay_on_this_host()
        has_index = asked is not None and (asked.type != "cuda" or asked.index is not None)
        if not has_index:
            check_devices(count, kind, oversubscribe=True)
        rank = enter_group(kind, timeout_seconds, asked if has_index else None)
        check_own_gpu(rank.device, rank.rank)
        return rank, True
    local = int(os.environ.get("LOCAL_RANK", "0"))
    own = asked or own_device(kind, local)
    number = dist.get_rank() if dist.is_initialized() else 0
    if dist.is_initialized():
        check_own_gpu(own, number)
    return Rank(rank=number, local_rank=local, num_ranks=count, device=own), False


def _check_alike(model: nn.Module) -> None:
    """Check that all ranks give the same weights, of which each is looked at in its first, middle and last number.

    Nothing sends them: replicas that begin apart would stay apart. Raises: InputError on every rank.
    """
    digest = 0
    for own in model.parameters():
        if type(own.data) is Tensor and own.numel():
            numbers = own.detach().flatten()[[0, own.numel() // 2, own.numel() - 1]]
            digest = zlib.crc32(repr(numbers.tolist()).encode(), digest)
    everyone: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(everyone, digest)
    others = [rank for rank, found in enumerate(everyone) if found != everyone[0]]
    if others:
        raise InputError(
            f"the weights of {type(model).__name__} on rank {others[0]} are not those on rank 0: call "
            "torch.manual_seed(0) before it is built, or load the same weights on every rank"
        )


def check_own_gpu(device: torch.device, rank: int) -> None:
    """Check that no other rank of this host has said that it computes on the same GPU, which NCCL does not take.

    Raises: EnvironmentFailure; under other backends it warns.
    """
    key = gpu_key(device)
    if not key:
        return
    others = _ranks_on(dist.group.WORLD, key, rank)
    if not others:
        return
    said = f"rank {rank} computes on the GPU of rank {others[0]}, {device} of this host: start one rank for each GPU"
    if dist.get_backend() == "nccl":
        raise EnvironmentFailure(said)
    warnings.warn(said, stacklevel=2)


@functools.lru_cache(maxsize=8)
def _ranks_on(world: object, key: str, rank: int) -> tuple[int, ...]:
    """The ranks that came before this one to say that a GPU is theirs; once in a process group."""
    place = job_store().add(f"trainwright/gpu/{key}", 1)
    job_store().set(f"trainwright/gpu/{key}/{place}", str(rank))
    return tuple(int(job_store().get(f"trainwright/gpu/{key}/{earlier}")) for earlier in range(1, place))


@functools.lru_cache(maxsize=1)
def _meshes(world: object, device_kind: str, timeout_seconds: float) -> Meshes:
    """The meshes of this process's group: plans that are applied one after the other share those of one layout."""
    return Meshes(device_kind, timeout_seconds)
