"""Losses of all steps so far, as far as they are known: they go with checkpoints, and so outlive a restart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from executor.mesh import Coordinates
from executor.run.checkpoint import LOOP
from profiles.errors import ArtifactError
from profiles.inputs.foreign import read_json


class KnownLosses:
    """Means over the replicas, the last of them of the newest step that was asked for."""

    def __init__(self, before: Sequence[float] = ()) -> None:
        self.values = [*before]
        self._num_taken = 0

    def with_those_of(self, own: Sequence[float | None], place: Coordinates) -> dict[str, Any]:
        """What a checkpoint keeps after steps whose losses on this rank are `own`; collective."""
        new = list(own[self._num_taken :])
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, new if place.tensor == 0 and None not in new else None)
        replicas = [losses for losses in everyone if losses is not None]
        self.values += [sum(losses) / len(replicas) for losses in zip(*replicas, strict=True)]
        self._num_taken = len(own)
        return {"losses": self.values}


def losses_in(path: Path, num_steps: int) -> tuple[float, ...]:
    """The losses that a checkpoint of so many steps keeps, the last of its last step; () where it keeps none."""
    if not (path / LOOP).exists():
        return ()
    found = read_json(path / LOOP, "the checkpoint is damaged")
    losses = found.get("losses", []) if isinstance(found, dict) else None
    if not isinstance(losses, list) or len(losses) > num_steps or not all(_is_loss(loss) for loss in losses):
        raise ArtifactError(f"{path / LOOP} does not hold the losses of a run")
    return tuple(losses)


def _is_loss(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
