"""What we choose: which plans are legal, what each would take, which is best. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.planned import Planned

__all__ = ["plan"]


def plan(model: str | Path, num_devices: int, **choices: Any) -> Planned:
    """Plan from a notebook or a program; `choices` are fields of planner.shipped.Request, device="h100-sxm" for one.

    `model` is a shipped alias, or a config.json or its folder.
    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    from planner.planned import planned

    return planned(str(model), num_devices, **choices)
