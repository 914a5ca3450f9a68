"""AdamW over a rank's parameters, whole or split, its states sharded where the plan says ZeRO stage 1."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

LEARNING_RATE = 1e-3


def build_optimizer(parameters: Iterable[nn.Parameter], sharded_over: dist.ProcessGroup | None) -> Optimizer:
    """AdamW of what is not frozen, in its fused form; parameters of one kind and mesh in groups of their own.

    One kernel takes one kind. With `sharded_over`, each of its ranks updates some and sends them to the others.
    """
    groups: dict[object, list[nn.Parameter]] = {}
    for parameter in (parameter for parameter in parameters if parameter.requires_grad):
        data = parameter.data
        groups.setdefault(data.device_mesh if isinstance(data, DTensor) else None, []).append(parameter)
    options = [{"params": group} for group in groups.values()]
    if sharded_over is None:
        return AdamW(options, lr=LEARNING_RATE, fused=True)
    # Not at the top: its package compiles scripts when loaded, and warns of it.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(
        options, optimizer_class=AdamW, process_group=sharded_over, lr=LEARNING_RATE, fused=True
    )
