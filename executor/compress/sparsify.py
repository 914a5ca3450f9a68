"""Weights set to zero and kept there: by magnitude, or two of every four, more and more of them while training goes on.

Works on the part of a weight that a rank holds, whatever the layout: a shard keeps its own largest. Under plain data
parallel that is what torch.nn.utils.prune would keep of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from planner.compression.recipes import Recipe

# Share of the steps over which the zeros become as many as asked for, and in how many goes: finding the smallest of
# many weights takes longer than a step of a small model.
RAMP_SHARE, RAMP_GOES = 0.5, 8
OF_FOUR = 2


class Zeros:
    """The zeros of a model's matrices over `num_steps` of training. Source of the ramp: Zhu and Gupta 2017."""

    def __init__(self, parameters: Iterable[nn.Parameter], own: Recipe, num_steps: int) -> None:
        self.own, self.ramp_steps = own, max(1, int(RAMP_SHARE * num_steps))
        self.matrices = [parameter for parameter in parameters if parameter.dim() == 2]
        self.masks: list[Tensor] = []

    def fraction(self, step: int) -> float:
        """Share of the weights that is zero after `step` steps."""
        rest = max(0.0, 1 - step / self.ramp_steps)
        return self.own.fraction * (1 - rest**3)

    @torch.no_grad()
    def apply(self, step: int) -> None:
        """Set to zero what is to be zero after `step` steps."""
        goes = max(1, self.ramp_steps // RAMP_GOES)
        if not self.masks or (step <= self.ramp_steps and (step % goes == 0 or step == self.ramp_steps)):
            share = self.fraction(step)
            self.masks = [self._mask(_local(matrix), share) for matrix in self.matrices]
        for matrix, mask in zip(self.matrices, self.masks, strict=True):
            _local(matrix).mul_(mask)

    def _mask(self, weights: Tensor, share: float) -> Tensor:
        if self.own.part == "2:4":
            return two_of_four(weights) if share >= self.own.fraction else torch.ones_like(weights, dtype=torch.bool)
        return largest(weights, share)


def largest(weights: Tensor, zero_share: float) -> Tensor:
    """True where the largest weights are; `zero_share` of all, rounded, are False."""
    count = round(zero_share * weights.numel())
    mask = torch.ones(weights.numel(), dtype=torch.bool, device=weights.device)
    mask[weights.abs().flatten().topk(count, largest=False).indices] = False
    return mask.view_as(weights)


def two_of_four(weights: Tensor) -> Tensor:
    """True at the two largest of every four weights of a row."""
    groups = weights.abs().reshape(-1, 4)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.topk(OF_FOUR, dim=1).indices, value=True)
    return mask.view_as(weights)


def _local(parameter: nn.Parameter) -> Tensor:
    data = parameter.data
    return data.to_local() if isinstance(data, DTensor) else data
