"""Over how many ranks the experts of a task's mixtures are shared out, and its layers as a rank of so many runs them.

Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from profiles.artifacts import STRICT
from profiles.inputs.ranges import Count
from profiles.models.layer_profile import LayerProfile

# Degrees over which experts may be shared out.
SHARES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """The `degrees` over which a module's experts are proven to be shared out; `refusal` says why there are none.

    `layers` are by precision, and there for each degree in order, the distinct layers as one rank of so many has them;
    their messages are what it exchanges with the others.
    """

    __pydantic_config__ = STRICT

    degrees: tuple[Count, ...] = ()
    refusal: str = ""
    layers: dict[str, tuple[tuple[LayerProfile, ...], ...]] = field(default_factory=dict)

    def at(self, precision: str) -> dict[int, tuple[LayerProfile, ...]]:
        """The distinct layers by degree; of a precision that was not traced so, none."""
        return dict(zip(self.degrees, self.layers.get(precision, ()), strict=False))

    def joined(self, other: Sharing) -> Sharing:
        """The same with the precisions of another trace of the module, where that has the same degrees."""
        return replace(self, layers=self.layers | other.layers) if self.degrees == other.degrees else self
