"""AdamW over a rank's parameters, whole or split, its states sharded where the plan says ZeRO stage 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

LEARNING_RATE = 1e-3
# In a group of parameters, which options it was given: the same on every layout, where groups are others.
KIND = "kind"


def build_optimizer(parameters: Iterable[nn.Parameter], sharded_over: dist.ProcessGroup | None) -> Optimizer:
    """AdamW of what is not frozen, in its fused form; parameters of one kind and mesh in groups of their own.

    One kernel takes one kind. With `sharded_over`, each of its ranks updates some and sends them to the others.
    """
    options = grouped({str(index): own for index, own in enumerate(parameters) if own.requires_grad})
    if sharded_over is None:
        return AdamW(options, lr=LEARNING_RATE, fused=True)
    # Not at the top: its package compiles scripts when loaded, and warns of it.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(
        options, optimizer_class=AdamW, process_group=sharded_over, lr=LEARNING_RATE, fused=True
    )


def grouped(
    parameters: Mapping[str, nn.Parameter], options: Callable[[str, nn.Parameter], Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Parameters by name in groups of one mesh, as one kernel takes them, with the same `options(name, parameter)`."""
    groups: dict[object, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        own = {} if options is None else dict(options(name, parameter))
        data = parameter.data
        mesh = data.device_mesh if isinstance(data, DTensor) else None
        kind = str(sorted(own.items()))
        group = groups.setdefault((mesh, kind), {"params": [], KIND: kind, **own})
        group["params"].append(parameter)
    return list(groups.values())


def own_share(optimizer: Optimizer) -> Optimizer:
    """The optimizer of what this rank updates: ZeRO 1 wraps that of a rank's share."""
    own: Optimizer = getattr(optimizer, "optim", optimizer)
    return own


def states_by_parameter(optimizer: Optimizer) -> dict[nn.Parameter, dict[str, Tensor]]:
    """What an optimizer keeps of each parameter that this rank updates."""
    return own_share(optimizer).state  # type: ignore[return-value]


def is_updated(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether this rank updates a parameter, rather than receiving it."""
    return any(parameter is own for group in own_share(optimizer).param_groups for own in group["params"])
