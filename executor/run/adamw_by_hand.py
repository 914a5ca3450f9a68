"""AdamW written out beside the plan's optimizer, on the same gradients and on some elements of every weight.

Gradients are taken as they come, rounded as they may be: what the optimizer makes of them is exact in any precision.
Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# What plans are trained with.
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 1e-2
MOST_ELEMENTS = 2**14
# Of how far the weights have gone (in 32 bits, 1 - 0.999 is off by 5e-5), and of what they are, which is rounded to 24
# bits at every step.
TOLERANCE_FRACTION, ROUNDING = 1e-4, 2.0**-24


@dataclass(slots=True, kw_only=True)
class Followed:
    """Elements of one weight on this rank: where they stand, what they and their moments should be."""

    parameter: nn.Parameter
    places: Tensor
    start: Tensor
    value: Tensor
    first: Tensor
    second: Tensor
    num_steps: int = 0


class AdamWByHand:
    """Follows the weights of one rank through steps of the optimizer: `see` before each, `compare` after the last."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.followed: dict[str, Followed] = {}
        for name, parameter in parameters.items():
            own = own_part(parameter.detach()).flatten()
            if not parameter.requires_grad or not own.numel():
                continue
            stride = max(1, own.numel() // MOST_ELEMENTS)
            places = torch.arange(0, own.numel(), stride, device=own.device)
            value = own[places].double()
            zeros = torch.zeros_like(value)
            self.followed[name] = Followed(
                parameter=parameter, places=places, start=value, value=value, first=zeros, second=zeros
            )

    def go_on_with(self, parameters: dict[str, nn.Parameter]) -> None:
        """Follow other parameters of the same names and places, as those of a trainer that was resumed."""
        for name, one in self.followed.items():
            one.parameter = parameters[name]

    def see(self) -> None:
        """Take the step that the optimizer is about to take."""
        for one in self.followed.values():
            gradient = one.parameter.grad
            if gradient is None:
                continue
            if isinstance(gradient, DTensor) and isinstance(one.parameter.data, DTensor):
                gradient = gradient.redistribute(placements=one.parameter.data.placements)
            own = own_part(gradient.detach()).flatten()[one.places].double()
            one.num_steps += 1
            one.first = BETAS[0] * one.first + (1 - BETAS[0]) * own
            one.second = BETAS[1] * one.second + (1 - BETAS[1]) * own * own
            mean = one.first / (1 - BETAS[0] ** one.num_steps)
            root = (one.second / (1 - BETAS[1] ** one.num_steps)).sqrt()
            one.value = one.value - LEARNING_RATE * (mean / (root + EPSILON) + WEIGHT_DECAY * one.value)

    def compare(self) -> tuple[float, float, str]:
        """The largest difference over what is allowed, that difference in shares of the way gone, and of which weight.

        A weight without any is not compared.
        """
        worst = (0.0, 0.0, "")
        for name, one in self.followed.items():
            found = own_part(one.parameter.detach()).flatten()[one.places].double()
            gone = float((one.value - one.start).norm())
            off = float((found - one.value).norm())
            rounding = ROUNDING * max(1, one.num_steps) * float(one.start.norm())
            allowed = TOLERANCE_FRACTION * gone + rounding
            ratio = off / allowed if allowed else (math.inf if off else 0.0)
            if math.isnan(ratio) or ratio > worst[0]:
                worst = (math.inf if math.isnan(ratio) else ratio, off / (gone or 1.0), name)
        return worst


def own_part(value: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value
