"""A checkpoint that cannot be saved: what is half written goes, and all ranks say the same of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from executor.run.checkpoint_sums import is_full, no_room
from profiles.errors import EnvironmentFailure


def for_all(act: Callable[[], None]) -> None:
    """Do something on rank 0, or in a process that is no rank, while the others wait; collective.

    Raises: EnvironmentFailure, on every rank, where that fails for what the system or another run is to blame.
    """
    failure: list[Any] = [""]
    cause: Exception | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            act()
        except (OSError, EnvironmentFailure) as error:
            failure, cause = [str(error)], error
    if dist.is_initialized():
        dist.broadcast_object_list(failure)
    if failure[0]:
        raise EnvironmentFailure(failure[0]) from cause


def refused(
    error: BaseException, folder: Path, part: Path, num_bytes: int, latest: Callable[[Path], Path | None]
) -> EnvironmentFailure:
    """What is said, by all ranks, of a checkpoint that could not be saved; what is half written is gone; collective."""
    said: list[Any] = [""]
    if not dist.is_initialized() or dist.get_rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
        said = [_sentence(error, folder, num_bytes, latest(folder))]
    if dist.is_initialized():
        dist.broadcast_object_list(said)
    return EnvironmentFailure(said[0])


def _sentence(error: BaseException, folder: Path, num_bytes: int, newest: Path | None) -> str:
    still = "no checkpoint was saved before" if newest is None else f"{newest.name} is whole, to go on from"
    causes: list[BaseException] = [error]
    if isinstance(error, CheckpointException):
        causes = [failure for failure, _ in error.failures.values()]
    if any(is_full(cause) for cause in causes):
        return f"{no_room(folder, num_bytes)}; {still}"
    first = str(causes[0]).splitlines() or [type(causes[0]).__name__]
    return f"cannot save in {folder}: {first[0]}; {still}"
