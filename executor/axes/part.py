"""What a rank trains of a model, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from profiles.workloads.buffers import saved_buffers
from profiles.workloads.meta_values import MetaValues
from profiles.workloads.tensor_splits import OfRanks


class Part(nn.Module):
    """A part of a model that one rank runs; `draws` tells whether it draws random numbers while it trains.

    `summed` are global names of parameters whose gradients add up over the ranks of the tensor axis; `rearranged` those
    that stand rank by rank there, with the dimension and every rank's pieces of the whole. `values` are those that it
    gets when it is split and sharded, where it is on the meta device.
    """

    def __init__(self, precision: str, device_kind: str, draws: bool) -> None:
        super().__init__()
        self.precision, self.device_kind, self.draws = precision, device_kind, draws
        self.summed: frozenset[str] = frozenset()
        self.rearranged: dict[str, tuple[int, OfRanks]] = {}
        self.values: MetaValues | None = None

    @property
    def units(self) -> Iterable[nn.Module]:
        """What is sharded and gathered by itself."""
        raise NotImplementedError

    @property
    def statistics(self) -> dict[str, Tensor]:
        """Buffers that belong to its state, by path."""
        return saved_buffers(self)

    def leaves_unused(self) -> bool:
        """Whether a step may leave parameters without a gradient."""
        return False

    def global_name(self, path: str) -> str:
        """What one device would call what this part has at `path`."""
        raise NotImplementedError
