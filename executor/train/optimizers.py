"""Optimizers by the names of a training's settings, with groups of parameters that have options of their own."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from executor.train.settings import OptimizerSettings
from planner.plans import Plan
from profiles.errors import EnvironmentFailure, InputError

# Those that keep, of a parameter, what has other shapes than it: a shard of one would be of nothing.
FACTORED = ("adafactor",)
EIGHT_BIT = "adamw8bit"


def optimizer_class(settings: OptimizerSettings, plan: Plan, *, keeps_checkpoints: bool) -> tuple[Any, dict[str, Any]]:
    """The class and the options of all parameters.

    Raises: InputError where the plan, or checkpoints, cannot have it; EnvironmentFailure where a library is missing.
    """
    splits = max(plan.tensor_parallel, plan.expert_parallel) > 1 or plan.zero_stage > 1
    if settings.name in FACTORED and splits:
        raise InputError(
            f"[optimizer] {settings.name} keeps sums over rows and columns of whole weights, but plan {plan.id} splits "
            "them: use adamw, or a plan of data_parallel and pipelines with ZeRO 0 or 1"
        )
    if settings.name in (*FACTORED, EIGHT_BIT) and keeps_checkpoints:
        raise InputError(
            f"[optimizer] {settings.name} keeps state that cannot move to another layout: leave --checkpoint "
            "out, or use adamw or sgd"
        )
    options = {"lr": settings.lr, "weight_decay": settings.weight_decay, **settings.options}
    kind, options = _named(settings, options)
    try:
        kind([nn.Parameter(torch.zeros(2, 2))], **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"[optimizer] {settings.name} does not take its options: {error}") from error
    return kind, options


def _named(settings: OptimizerSettings, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if settings.name == "adamw":
        return torch.optim.AdamW, {"fused": True, **options}
    if settings.name == "sgd":
        return torch.optim.SGD, options
    if settings.name == "adafactor":
        return torch.optim.Adafactor, options
    if importlib.util.find_spec("torchao") is None:
        raise EnvironmentFailure("[optimizer] adamw8bit comes from torchao: pip install 'trainwright[compress]'")
    from torchao.optim import AdamW8bit

    return AdamW8bit, options


def options_of(settings: OptimizerSettings) -> Callable[[str, nn.Parameter], dict[str, Any]] | None:
    """What `AppliedPlan.optimizer` asks of each parameter: the options of the first group that it is in."""
    if not settings.groups:
        return None

    def options(name: str, parameter: nn.Parameter) -> dict[str, Any]:
        for group in settings.groups:
            is_small = group.dims is None or parameter.dim() <= group.dims
            if is_small and re.search(group.match, name):
                given = {"lr": group.lr, "weight_decay": group.weight_decay}
                return {key: value for key, value in given.items() if value is not None}
        return {}

    return options


class Rates:
    """Sets the learning rate of every group for a step: its own times a factor, which depends on the step alone."""

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._optimizer, self._factor = optimizer, factor
        self._own = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, step: int) -> float:
        """Set them for step `step`, from 0; the factor."""
        factor = self._factor(step)
        for group, own in zip(self._optimizer.param_groups, self._own, strict=True):
            if isinstance(group["lr"], Tensor):
                # Compiled optimizers read it where it is.
                group["lr"].fill_(own * factor)
            else:
                group["lr"] = own * factor
        return factor
