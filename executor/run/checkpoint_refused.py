"""A checkpoint that cannot be saved: what is half written goes, and all ranks say the same of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from executor.run.checkpoint_sums import is_full, no_room
from profiles.errors import EnvironmentFailure, LostPeer
from profiles.ranks.rank import from_first, tell_others


def for_all(act: Callable[[], None], group: dist.ProcessGroup | None = None) -> None:
    """Do something on rank 0, or in a process that is no rank, while the others wait; collective over `group`, or all.

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
        dist.broadcast_object_list(failure, group=group)
    if failure[0]:
        raise EnvironmentFailure(failure[0]) from cause


def by_first(what: str, act: Callable[[], None], seconds: float) -> None:
    """As `for_all`, for what may take longer than a collective would wait; each `what` once in a job.

    Raises: EnvironmentFailure, on every rank, at once where the system is to blame; LostPeer on the others else.
    """
    if dist.get_rank() != 0:
        kind, said = json.loads(from_first(what, seconds))
        if kind:
            raise EnvironmentFailure(said) if kind == EnvironmentFailure.__name__ else LostPeer(said)
        return
    try:
        act()
    except (OSError, SafetensorError, EnvironmentFailure) as error:
        failure = EnvironmentFailure(f"cannot write: {error}" if isinstance(error, SafetensorError) else str(error))
        tell_others(what, json.dumps((type(failure).__name__, str(failure))))
        raise failure from error
    except BaseException as error:
        tell_others(what, json.dumps((type(error).__name__, f"rank 0 ended: {type(error).__name__}")))
        raise
    tell_others(what, json.dumps(("", "")))


def refused(
    error: BaseException,
    folder: Path,
    part: Path,
    num_bytes: int,
    latest: Callable[[Path], Path | None],
    group: dist.ProcessGroup | None = None,
) -> EnvironmentFailure:
    """What is said, by all ranks, of a checkpoint that could not be saved; what is half written is gone; collective."""
    said: list[Any] = [""]
    if not dist.is_initialized() or dist.get_rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
        said = [_sentence(error, folder, num_bytes, latest(folder))]
    if dist.is_initialized():
        dist.broadcast_object_list(said, group=group)
    return EnvironmentFailure(said[0])


def _sentence(error: BaseException, folder: Path, num_bytes: int, newest: Path | None) -> str:
    still = "no checkpoint was saved before" if newest is None else f"{newest.name} is complete, to resume from"
    causes: list[BaseException] = [error]
    if isinstance(error, CheckpointException):
        causes = [failure for failure, _ in error.failures.values()]
    if any(is_full(cause) for cause in causes):
        return f"{no_room(folder, num_bytes)}; {still}"
    first = str(causes[0]).splitlines() or [type(causes[0]).__name__]
    return f"cannot save in {folder}: {first[0]}; {still}"
