"""Numbers that a module keeps beside its parameters and saves with them, such as the statistics of a norm."""

from __future__ import annotations

from torch import Tensor, nn


def saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The module's buffers that belong to its state, by path; not what it can compute anew."""
    buffers = dict(module.named_buffers())
    return {name: buffers[name] for name in module.state_dict() if name in buffers} if buffers else {}
