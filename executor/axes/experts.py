"""The expert axis: each rank holds some of a layer's experts, and tokens travel to those that were chosen for them.

Ranks that share experts are neighbours on the data axis. No token is dropped: as many are sent as were chosen.
Source: Lepikhin et al., GShard, 2020 (arXiv 2006.16668), without its capacity.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.profiler import record_function

from executor.fake_group import FakeTensor
from executor.observe.events import EXCHANGES
from profiles.workloads.experts import Compute, expert_parameters, set_dispatch

# Where an expert's weights say over which ranks they are shared out, as a mesh of one axis. Their gradient is the sum
# over those ranks' tokens, and DDP must leave it alone.
MARK = "expert_mesh"


def place_experts(layer: nn.Module, mesh: DeviceMesh) -> None:
    """Keep this rank's share of the layer's experts, where it has any, and let tokens travel over `mesh`."""
    group = mesh.get_group()
    for module in layer.modules():
        parameters = expert_parameters(module)
        for name, whole in parameters.items():
            share = whole.detach().chunk(group.size())[group.rank()]
            own = nn.Parameter(share.clone(), requires_grad=whole.requires_grad)
            setattr(own, MARK, mesh)
            setattr(module, name, own)
        if parameters:
            set_dispatch(module, functools.partial(_travel, group))


def expert_names(module: nn.Module) -> list[str]:
    """Names of the parameters that are this rank's experts alone."""
    return [name for name, parameter in module.named_parameters() if hasattr(parameter, MARK)]


def placed_expert(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """An expert's weights, or their moments, with their place among those of all ranks; anything else as it is."""
    mesh: DeviceMesh | None = getattr(parameter, MARK, None)
    if mesh is None or value.dim() == 0:
        return value
    return DTensor.from_local(value, mesh, (Shard(0),), run_check=False)


def average_experts(parameters: Iterable[nn.Parameter], replicas: dist.ProcessGroup, num_losses: int) -> None:
    """Turn gradients of sums over the ranks that share experts into those of the mean of all ranks' losses."""
    for parameter in _experts_of(parameters):
        assert parameter.grad is not None
        if replicas.size() > 1:
            dist.all_reduce(parameter.grad, group=replicas)
        parameter.grad /= num_losses


def _experts_of(parameters: Iterable[nn.Parameter]) -> Iterator[nn.Parameter]:
    return (parameter for parameter in parameters if hasattr(parameter, MARK) and parameter.requires_grad)


def _travel(group: dist.ProcessGroup, compute: Compute, tokens: Tensor, counts: list[int]) -> Tensor:
    """Send rows to the ranks of their experts, and what those make of them back. Shapes: (row, hidden) both ways."""
    num_local = len(counts) // group.size()
    sent = [sum(counts[first : first + num_local]) for first in range(0, len(counts), num_local)]
    by_source = _incoming(counts, num_local, group, tokens.device)
    received = [sum(own) for own in by_source]
    # Rows arrive rank by rank, and of each rank expert by expert.
    arrived = _regroup(_exchange(tokens, received, sent, group), by_source)
    by_expert = list(zip(*by_source, strict=True))
    answers = compute(arrived, [sum(own) for own in by_expert])
    return _exchange(_regroup(answers, by_expert), sent, received, group)


def _incoming(counts: list[int], num_local: int, group: dist.ProcessGroup, device: torch.device) -> list[list[int]]:
    """How many rows every rank sends to each expert of this one."""
    told = torch.tensor(counts, device=device)
    incoming = torch.empty_like(told)
    with record_function(EXCHANGES["expert"]):
        dist.all_to_all_single(incoming, told, group=group)
    if isinstance(incoming, FakeTensor):
        # In a rehearsal all ranks are alike.
        first = group.rank() * num_local
        return [counts[first : first + num_local]] * group.size()
    own: list[list[int]] = incoming.view(group.size(), num_local).tolist()
    return own


def _regroup(rows: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    """Rows in pieces of `sizes`, the pieces' outer order made their inner one. Shapes: (row, hidden) both ways."""
    pieces = rows.split([size for outer in sizes for size in outer])
    width = len(sizes[0])
    return torch.cat([pieces[outer * width + inner] for inner in range(width) for outer in range(len(sizes))])


class _Exchange(torch.autograd.Function):
    """An all-to-all of rows, as many to each rank as it is due; its gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.received, ctx.sent, ctx.group = received, sent, group
        return _all_to_all(rows, received, sent, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradients[0], ctx.sent, ctx.received, ctx.group), None, None, None


def _exchange(rows: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
    result: Tensor = _Exchange.apply(rows, received, sent, group)  # type: ignore[no-untyped-call]
    return result


def _all_to_all(rows: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
    result = rows.new_empty(sum(received), rows.shape[1])
    with record_function(EXCHANGES["expert"]):
        dist.all_to_all_single(result, rows.contiguous(), received, sent, group=group)
    return result
