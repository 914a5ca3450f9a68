"""The expert axis: each rank holds some of a layer's experts, and tokens travel to those that were chosen for them.

Ranks that share experts are neighbours on the data axis. No token is dropped: as many are sent as were chosen.
Source: Lepikhin et al., GShard, 2020 (arXiv 2006.16668), without its capacity.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

# Where an expert's weights say over which ranks they are shared out, as a mesh of one axis. Their gradient is the sum
# over those ranks' tokens, and DDP must leave it alone.
MARK = "expert_mesh"


def place_experts(layer: nn.Module, mesh: DeviceMesh) -> None:
    """Keep this rank's share of the layer's experts, where it has any, and let tokens travel over `mesh`."""
    group = mesh.get_group()
    for module in layer.modules():
        if not _holds_experts(module):
            continue
        count = int(module.num_experts) // group.size()  # type: ignore[arg-type]
        for name in ("gate_up_proj", "down_proj"):
            whole = getattr(module, name)
            own = nn.Parameter(whole.detach()[group.rank() * count : (group.rank() + 1) * count].clone())
            setattr(own, MARK, mesh)
            setattr(module, name, own)
        module.forward = functools.partial(_travel, module, group)


def _holds_experts(module: nn.Module) -> bool:
    """Transformers keeps all experts of a layer in two tensors of three dimensions."""
    return getattr(getattr(module, "gate_up_proj", None), "dim", lambda: 0)() == 3


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
    return (parameter for parameter in parameters if hasattr(parameter, MARK))


def _travel(
    module: Any, group: dist.ProcessGroup, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What the chosen experts make of every token, weighted. Shapes: (token, hidden), twice (token, chosen)."""
    num_chosen, num_local = top_k_index.shape[1], module.num_experts // group.size()
    order = top_k_index.flatten().argsort(stable=True)
    rows = order // num_chosen
    counts = torch.bincount(top_k_index.flatten(), minlength=module.num_experts)
    incoming = torch.empty_like(counts)
    dist.all_to_all_single(incoming, counts, group=group)
    by_source = incoming.view(group.size(), num_local)
    sent, received = counts.view(group.size(), num_local).sum(1).tolist(), by_source.sum(1).tolist()
    tokens = _exchange(hidden[rows], received, sent, group)
    experts = torch.arange(num_local, device=hidden.device).repeat(group.size()).repeat_interleave(by_source.flatten())
    answers = _exchange(_answer(module, tokens, experts), sent, received, group)
    weighted = answers * top_k_weights.flatten()[order, None]
    return torch.zeros_like(hidden).index_add(0, rows, weighted.to(hidden.dtype))


def _answer(module: Any, tokens: Tensor, experts: Tensor) -> Tensor:
    """Each token through its expert. Shapes: (token, hidden), (token,)."""
    # Where no token came, gradients are zero and not missing: other ranks average theirs.
    answers = tokens + 0 * (module.gate_up_proj.sum() + module.down_proj.sum()).to(tokens.dtype)
    pieces = []
    for index in range(len(module.gate_up_proj)):
        own = (experts == index).nonzero().flatten()
        gate, up = nn.functional.linear(tokens[own], module.gate_up_proj[index]).chunk(2, dim=-1)
        pieces.append((own, nn.functional.linear(module.act_fn(gate) * up, module.down_proj[index])))
    where, values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    result: Tensor = (0 * answers).to(values.dtype).index_add(0, where, values)
    return result


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
    dist.all_to_all_single(result, rows.contiguous(), received, sent, group=group)
    return result
