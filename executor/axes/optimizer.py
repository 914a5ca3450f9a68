"""AdamW over a rank's parameters, whole or split, its states sharded where the plan says ZeRO stage 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from profiles.errors import InputError

LEARNING_RATE = 1e-3
# What torch's AdamW takes unless it is told.
WEIGHT_DECAY = 1e-2
# In a group of parameters, which options it was given: the same on every layout, where groups are others.
KIND = "kind"


def build_optimizer(parameters: Iterable[nn.Parameter], sharded_over: dist.ProcessGroup | None) -> Optimizer:
    """AdamW of what is not frozen, in its fused form; parameters of one kind and mesh in groups of their own.

    One kernel takes one kind. With `sharded_over`, each of its ranks updates some and sends them to the others.
    """
    groups = grouped({str(index): own for index, own in enumerate(parameters) if own.requires_grad})
    if sharded_over is None:
        return AdamW(groups, lr=LEARNING_RATE, fused=True)
    return sharded(AdamW, groups, sharded_over, lr=LEARNING_RATE, fused=True)


def sharded(
    kind: type[Optimizer], groups: list[dict[str, Any]], sharded_over: dist.ProcessGroup, **options: Any
) -> Optimizer:
    """An optimizer of class `kind` of which each rank updates some of the parameters and sends them to the others.

    What a rank sends is one message: the data of its parameters become parts of one tensor.
    """
    # Not at the top: its package compiles scripts when loaded, and warns of it.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(
        groups, optimizer_class=kind, process_group=sharded_over, parameters_as_bucket_view=True, **options
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
    """What an optimizer keeps of each parameter that this rank updates.

    Raises: InputError where that is anything but tensors, which a checkpoint of any layout could not place.
    """
    found: dict[nn.Parameter, dict[str, Tensor]] = {}
    state: Mapping[Any, Mapping[str, Any]] = own_share(optimizer).state
    for parameter, values in state.items():
        found[parameter] = {name: value for name, value in values.items() if value is not None}
        for name, value in found[parameter].items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"{type(own_share(optimizer)).__name__} keeps {name} as a {type(value).__name__}: only tensors can "
                    "be saved"
                )
    return found


def make_states(optimizer: Optimizer, trained: Iterable[nn.Parameter]) -> None:
    """Let an optimizer that has taken no step make what it keeps of `trained`, by a step of rate 0 over gradients of 0.

    What it then holds is no start of a training, but has the shapes into which a checkpoint is read.
    """
    own = own_share(optimizer)
    if own.state:
        return
    parameters, wanted = [parameter for group in own.param_groups for parameter in group["params"]], set(trained)
    gradients = [parameter.grad for parameter in parameters]
    rates = [group["lr"] for group in own.param_groups]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter in wanted else None
    for group in own.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    own.step()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for group, rate in zip(own.param_groups, rates, strict=True):
        group["lr"] = rate


def is_updated(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether this rank updates a parameter, rather than receiving it."""
    return any(parameter is own for group in own_share(optimizer).param_groups for own in group["params"])
