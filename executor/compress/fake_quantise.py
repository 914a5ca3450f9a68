"""Linears rounded to 8 bits while they train, and what a quantised model's weights consist of.

Weights have one scale for each row (output), activations one for each token, both symmetric, from the largest value.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

from profiles.workloads.int8_linears import rounded


def train_rounded(model: nn.Module) -> None:
    """Let every linear of the model multiply what int8 would leave of its weights and its input.

    Gradients pass the rounding by (straight-through). Source: Jacob et al. 2018.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = functools.partial(_rounded_linear, module)  # type: ignore[method-assign]


def _rounded_linear(module: nn.Linear, hidden: Tensor) -> Tensor:
    return nn.functional.linear(rounded(hidden), rounded(module.weight), module.bias)


def stored_tensors(model: nn.Module) -> list[Tensor]:
    """The plain tensors that a model's weights consist of, each once: of a quantised one its numbers and scales."""
    found: dict[int, Tensor] = {}
    for parameter in model.parameters():
        for tensor in _parts(parameter.data):
            found[tensor.data_ptr()] = tensor
    return list(found.values())


def _parts(tensor: Tensor) -> list[Tensor]:
    """Tensor subclasses say what they consist of by torch's own protocol (`__tensor_flatten__`)."""
    if type(tensor) in (Tensor, nn.Parameter):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [part for name in names for part in _parts(getattr(tensor, name))]
