"""Which checkpoint a run goes on from: the newest that is whole, and what is said of those that are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from executor.run.checkpoint import FOLDER, read_progress
from executor.run.checkpoint_index import read_index
from executor.run.checkpoint_sums import damage
from executor.run.owner import borrowed
from profiles.errors import ArtifactError

DAMAGED = "damaged-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The checkpoint to go on from, None for the first step; `notices` say why it is not the newest."""

    path: Path | None
    notices: tuple[str, ...] = ()


def newest_whole(folder: Path, *, is_read: bool = True, before_step: int | None = None) -> Choice:
    """The newest whole checkpoint of a folder, of those before a step where one is given.

    Whether it is whole is told by what it says of itself, and with `is_read` by the bytes of all its files, of which
    every rank of the group reads its share; then collective. What is damaged is put aside, where nobody else owns the
    folder. Raises: ArtifactError where there are checkpoints and none is whole.
    """
    damaged: list[tuple[Path, str]] = []
    for path in _newest_first(folder):
        words = _agreed(_wrong(path, is_read))
        if words:
            damaged.append((path, words))
        elif before_step is None or read_progress(path).step < before_step:
            if is_read:
                _put_aside(folder, [other for other, _ in damaged])
            return Choice(path=path, notices=tuple(_notice(other, said, path) for other, said in damaged))
    if damaged:
        told = "; ".join(f"{path.name}: {words}" for path, words in damaged)
        raise ArtifactError(f"no checkpoint in {folder} is complete ({told}): start from scratch in another folder")
    return Choice(path=None)


def _newest_first(folder: Path) -> Iterator[Path]:
    """Rank 0's view of the folder counts, for all must agree."""
    names: list[Any] = [
        sorted((path.name for path in folder.glob("step-*") if FOLDER.fullmatch(path.name)), reverse=True)
    ]
    if dist.is_initialized():
        dist.broadcast_object_list(names)
    for name in names[0]:
        yield folder / name


def _wrong(path: Path, is_read: bool) -> str:
    """What this process finds wrong with a checkpoint."""
    try:
        read_progress(path)
        read_index(path)
        if not is_read:
            return ""
        return damage(path, *((dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ()))
    except ArtifactError as error:
        words = str(error).removeprefix(f"{path} is damaged: ").removesuffix("; resume from another checkpoint")
        # Whoever tells it names the checkpoint.
        return words.replace(f"{path}{os.sep}", "")


def _agreed(words: str) -> str:
    """What any rank says first."""
    if not dist.is_initialized():
        return words
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, words)
    return next((said for said in everyone if said), "")


def _notice(path: Path, words: str, other: Path) -> str:
    return f"{path} is damaged ({words}): resuming from {other.name} instead"


def _put_aside(folder: Path, paths: list[Path]) -> None:
    """Rename damaged checkpoints, so that they do not count as one of the two that are kept."""
    if not paths or (dist.is_initialized() and dist.get_rank()):
        return
    with borrowed(folder) as is_ours:
        for path in paths if is_ours else ():
            target = path.with_name(f"{DAMAGED}{path.name}")
            if not target.exists():
                path.rename(target)
