"""The constants of convolutions, recurrent layers and passes, as they lie in the catalogue. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TypeVar

from profiles.artifacts import STRICT, read_toml
from profiles.catalog import CATALOG
from profiles.laws.convolutions import ConvolutionConstants
from profiles.laws.passes import PassConstants
from profiles.laws.recurrent import RecurrentConstants

PATH = CATALOG / "operators.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitConstants:
    """The constants of one kind of units: matrix units, or plain ones."""

    convolutions: ConvolutionConstants
    recurrent: RecurrentConstants
    passes: PassConstants


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorConstants:
    """All constants: of plain and of matrix units, and of memory.

    `*_speeds` are those of plain units of older generations, whose libraries are older too, against the newest.
    """

    __pydantic_config__ = STRICT

    convolutions_speeds: dict[str, float]
    recurrent_speeds: dict[str, float]
    plain_convolutions: ConvolutionConstants
    matrix_convolutions: ConvolutionConstants
    plain_recurrent: RecurrentConstants
    matrix_recurrent: RecurrentConstants
    passes: PassConstants

    def of(self, generation: str, on_matrix_units: bool) -> UnitConstants:
        """Those of a generation's units."""
        if on_matrix_units:
            return UnitConstants(
                convolutions=self.matrix_convolutions, recurrent=self.matrix_recurrent, passes=self.passes
            )
        return UnitConstants(
            convolutions=_slower(self.plain_convolutions, self.convolutions_speeds.get(generation, 1.0)),
            recurrent=_slower(self.plain_recurrent, self.recurrent_speeds.get(generation, 1.0)),
            passes=self.passes,
        )


Constants = TypeVar("Constants", ConvolutionConstants, RecurrentConstants)


def _slower(constants: Constants, speed: float) -> Constants:
    """The constants of units that do everything at a speed."""
    changes = {
        name: getattr(constants, name) * (1 / speed if name.endswith("_us") else speed)
        for name in (field.name for field in fields(constants))
        if name.endswith("_us") or (name.endswith("fraction") and name != "depthwise_fraction")
    }
    return replace(constants, **changes)


@lru_cache(maxsize=1)
def load_operator_constants() -> OperatorConstants:
    """The shipped constants."""
    return read_toml(PATH, OperatorConstants)
