"""Adapters of low rank beside frozen linears, as torch modules (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from torch import Tensor, nn

from profiles.models.adapters import Adapters
from profiles.models.families import LINEAR_TARGETS

# As the model's own weights start.
DEVIATION = 0.02


class AdaptedLinear(nn.Module):
    """A linear, and two thin ones whose product is added to it: it starts as the linear alone, for `up` is 0."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=DEVIATION)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """What the linear gives, and what the adapter adds. Shapes: (..., inputs) to (..., outputs)."""
        result: Tensor = self.linear(hidden) + self.up(self.down(hidden))
        return result


def adapt(layer: nn.Module, adapters: Adapters) -> nn.Module:
    """`layer` itself: frozen, with adapters beside those of its linears that they are for; as it is where all train."""
    if not adapters.freezes:
        return layer
    layer.requires_grad_(False)
    for path, linear in [(path, module) for path, module in layer.named_modules() if isinstance(module, nn.Linear)]:
        targets = next((targets for end, targets in LINEAR_TARGETS.items() if path.endswith(f".{end}")), ())
        if adapters.rank_of(*targets):
            parent, _, name = path.rpartition(".")
            setattr(layer.get_submodule(parent), name, AdaptedLinear(linear, adapters.rank))
    return layer
