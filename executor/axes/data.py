"""The data axis: how ranks that hold copies average their gradients, and shard what they hold.

Stage 0 and 1 of ZeRO are DDP; stages 2 and 3 are FSDP2, whose parameters are shards between steps, and with stage 3
between passes too. Schedules that compute weight gradients apart bypass DDP: they average once, after the step.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from executor.axes.experts import expert_names
from executor.axes.part import Part
from executor.axes.task_stage import TaskStage
from executor.fake_group import keep_first_buckets, outside_fakes
from executor.mesh import replica_mesh
from executor.observe.recorder import Recorder
from planner.plans import Plan
from profiles.codecs.codec import ALL_REDUCE
from profiles.codecs.ddp_hooks import Reduction, bucket_options, register
from profiles.models.profile import MIXED
from profiles.workloads.precision import low_dtype


def averages_after_the_step(plan: Plan, stage: nn.Module) -> bool:
    """Whether gradients are averaged by `average_after` rather than while the backward pass runs."""
    return plan.zero_stage < 2 and (plan.rules.splits_backward or isinstance(stage, TaskStage))


def average_gradients(
    stage: Part, plan: Plan, mesh: DeviceMesh, recorder: Recorder
) -> tuple[nn.Module, Reduction | None]:
    """`stage` with its gradients averaged over its replicas, and what averages them where that is a DDP hook."""
    replicas = replica_mesh(plan, mesh)
    if plan.zero_stage >= 2:
        return shard(stage, plan, replicas), None
    if averages_after_the_step(plan, stage):
        return stage, None
    # torch keeps it private (it is FSDP's and torchrec's way too); there is no public way to leave parameters out.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(stage, expert_names(stage))
    # Told of a mesh, DDP looks in each forward pass through all modules for what it has to turn back into DTensors.
    is_split = any(isinstance(own.data, DTensor) for own in stage.parameters())
    among: dict[str, Any] = {"device_mesh": replicas} if is_split else {"process_group": replicas.get_group()}
    wrapped = DistributedDataParallel(
        stage,
        **among,
        gradient_as_bucket_view=True,
        # Ranks start equal by construction, see build_stage, and buffers are sent once a step, whoever averages.
        init_sync=False,
        find_unused_parameters=stage.leaves_unused(),
        **_keep_buffers(),
        **bucket_options(plan.codec, stage),
    )
    reduction = register(wrapped, plan.codec, replicas.get_group(), recorder)
    keep_first_buckets(wrapped)
    return wrapped, reduction


def shard(stage: Part, plan: Plan, replicas: DeviceMesh) -> nn.Module:
    """Every layer is gathered by itself, so that no more than the one at work and the next are whole.

    In mixed precision it is gathered in 16 bits: autocast alone would gather fp32 and keep a 16-bit copy of each weight
    until its backward. Gradients are reduced in 32 bits, or in 16 where the plan's codec says so.
    """
    shared = _shared_parameters(stage)
    for module in (*stage.units, stage):
        # What others hold as well is the stage's: it is gathered before the first of them and kept for the last.
        if isinstance(module, FSDPModule) or (module is not stage and not shared.isdisjoint(module.parameters())):
            continue
        shard_alone(module, plan, replicas)
    return stage


def shard_alone(module: nn.Module, plan: Plan, replicas: DeviceMesh) -> None:
    """Shard what of a module is not sharded yet; it is gathered by itself from then on."""
    low = low_dtype(plan.precision) if plan.precision in MIXED else None
    reduced = torch.bfloat16 if plan.codec == "bf16" else torch.float32
    with outside_fakes():
        fully_shard(
            module,
            mesh=replicas,
            reshard_after_forward=plan.zero_stage == 3,
            mp_policy=MixedPrecisionPolicy(param_dtype=low, reduce_dtype=reduced, cast_forward_inputs=False),
            # Of two dimensions where whole copies of the shards stand beside one another.
            shard_placement_fn=functools.partial(_shards, replicas.size(replicas.ndim - 1)),
            ignored_params=set(left_whole(module)),
        )


def _shared_parameters(stage: Part) -> set[nn.Parameter]:
    """Parameters that stand in more than one unit of a stage, or within one and outside of all."""
    holders: dict[nn.Parameter, set[nn.Module]] = {}
    owners = {part: unit for unit in stage.units for part in unit.modules()}
    for part in stage.modules():
        for parameter in part.parameters(recurse=False):
            holders.setdefault(parameter, set()).add(owners.get(part, stage))
    return {parameter for parameter, held in holders.items() if len(held) > 1}


def left_whole(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that FSDP cannot cut, single numbers; their gradients are averaged after the step."""
    return [parameter for parameter in module.parameters() if parameter.dim() == 0]


def _shards(num_shards: int, parameter: nn.Parameter) -> Shard | None:
    """Along which dimension a parameter is cut, where not the first.

    A layer's experts are fewer than ranks may be, and most would hold nothing but padding of the same size.
    """
    if parameter.dim() > 2 and parameter.shape[0] % num_shards and not parameter.shape[1] % num_shards:
        return Shard(1)
    return None


def paused(modules: Iterable[nn.Module]) -> contextlib.AbstractContextManager[object]:
    """While entered, backward passes of DDP modules add to the gradients and do not average them."""
    stack = contextlib.ExitStack()
    for module in modules:
        if isinstance(module, DistributedDataParallel):
            stack.enter_context(module.no_sync())
    return stack


def keep_gathered(module: nn.Module, kept: bool) -> None:
    """Whether FSDP keeps parameters whole after the next backward pass, for the micro-batch that follows.

    Gradients are sharded after every micro-batch all the same: that is what stages 2 and 3 are.
    """
    if isinstance(module, FSDPModule):
        module.set_reshard_after_backward(not kept)


def shard_again(module: nn.Module) -> None:
    """Drop what FSDP gathered for a pass that no backward pass followed: parameters are shards between steps."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def average_after(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup, recorder: Recorder) -> None:
    """Average the gradients over `group` in one message, after a step's backward passes."""
    ready = recorder.bucket_ready()
    gradients = [_whole_gradient(parameter) for parameter in parameters]
    message = torch.cat([gradient.flatten() for gradient in gradients]).div_(group.size())
    dist.all_reduce(message, group=group)
    for gradient, averaged in zip(gradients, message.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))
    recorder.note(ALL_REDUCE, -1, ready)


def sum_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Sum the gradients over `group`, whose ranks each have a part of them."""
    for parameter in parameters:
        gradient = _whole_gradient(parameter)
        dist.all_reduce(gradient.to_local() if isinstance(gradient, DTensor) else gradient, group=group)


def broadcast_buffers(buffers: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Give every rank of `group` the buffers of its first, as DDP does: statistics are of what that rank saw."""
    # In one message of bytes; the widest first, so that each part begins where a number of its type may.
    ordered = sorted(buffers, key=lambda buffer: -buffer.itemsize)
    message = torch.cat([buffer.flatten().view(torch.uint8) for buffer in ordered])
    dist.broadcast(message, group=group, group_src=0)
    for buffer, value in zip(ordered, message.split([buffer.nbytes for buffer in ordered]), strict=True):
        buffer.copy_(value.view(buffer.dtype).view_as(buffer))


def _whole_gradient(parameter: nn.Parameter) -> Tensor:
    """The memory of a parameter's gradient on this rank, summed first where the tensor axis left sums open."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    gradient = parameter.grad
    if isinstance(gradient, DTensor):
        assert isinstance(parameter.data, DTensor)
        gradient = gradient.redistribute(placements=parameter.data.placements)
        parameter.grad = gradient
        return gradient.to_local()
    return gradient


def _keep_buffers() -> dict[str, Any]:
    """The option that stops DDP from sending buffers at every forward; torch renamed it after 2.11."""
    names = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}


def named_parameters_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A stage's parameters by global name, whatever is wrapped around it."""
    stage = module.module if isinstance(module, DistributedDataParallel) else module
    assert isinstance(stage, Part)
    return ((stage.global_name(path), parameter) for path, parameter in stage.named_parameters())
