"""Where a module draws random numbers while it trains, and how it trains without them."""

from __future__ import annotations

from torch import nn

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def holds_dropout(module: nn.Module) -> bool:
    """Whether a part of the module says of itself that it drops something: a layer for it, or a number called so."""
    return any(_drops(part) for part in module.modules())


def _drops(part: nn.Module) -> bool:
    if isinstance(part, DROPOUTS):
        return part.p > 0
    values = ((name, value) for name, value in vars(part).items() if "drop" in name.lower())
    return any(isinstance(value, float) and value > 0 for _, value in values)


def silence(module: nn.Module) -> None:
    """Let the module train without drawing random numbers, from now on.

    Everything is told that it does not train, but for norms that keep statistics, which would compute something else,
    and recurrent layers, which cuDNN trains only where they do; of those the dropout is taken.
    """
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part.dropout = 0.0
        elif not any(name.startswith("running_") for name, _ in part.named_buffers(recurse=False)):
            part.training = False
