"""Where the module of a task can be cut into pipeline stages, and what crosses: as one traced pass of it showed."""

from __future__ import annotations

from dataclasses import dataclass, field

from profiles.artifacts import STRICT
from profiles.inputs.ranges import Whole
from profiles.models.operators import Polynomial


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWeights:
    """Parameters that are used at layers of several `positions`, and counted with the first of them."""

    __pydantic_config__ = STRICT

    num_parameters: Whole
    positions: tuple[Whole, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """Cuts of a module's own forward pass.

    A stage may begin at the layers at `positions`; `received_bytes` of tensors come to each of those, by precision.
    `refusal` says why there are none, or why none is where another block begins. `shared` weights stand on every stage
    that uses them.
    """

    __pydantic_config__ = STRICT

    positions: tuple[Whole, ...] = ()
    received_bytes: dict[str, tuple[Polynomial, ...]] = field(default_factory=dict)
    refusal: str = ""
    shared: tuple[SharedWeights, ...] = ()

    def received_at(self, position: int, precision: str) -> Polynomial:
        """Bytes that come to a stage that begins at `position`."""
        return self.received_bytes[precision][self.positions.index(position)]


def nearest(bounds: tuple[int, ...], positions: tuple[int, ...]) -> tuple[int, ...]:
    """Where stages begin that should begin at `bounds`, the first at 0, and can at `positions` alone, which rise.

    As they are where there are too few of those.
    """
    wanted = bounds[1:]
    if len(wanted) > len(positions):
        return bounds
    chosen: list[int] = []
    for number, bound in enumerate(wanted):
        able = positions[len(chosen) : len(positions) - (len(wanted) - number - 1)]
        able = tuple(position for position in able if not chosen or position > chosen[-1])
        chosen.append(min(able, key=lambda position: abs(position - bound)))
    return (bounds[0], *chosen)
