"""Checkpoints written: at once, or of a copy in host memory while training goes on."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex

from executor.run.checkpoint import FOLDER, LOOP, Progress, Trained, latest, state_of, write_state
from executor.run.checkpoint_index import Writer
from executor.run.checkpoint_pieces import InPieces
from executor.run.checkpoint_refused import for_all, refused
from executor.run.checkpoint_sums import write_sums
from executor.run.owner import own
from profiles.errors import EnvironmentFailure
from profiles.files import write_text
from profiles.ranks.rank import unpinned

# The newest, and the one before: where the disk fills up while one is saved, the other is still whole.
NUM_KEPT = 2
Group = dist.ProcessGroup | None


def save(folder: Path, progress: Progress, trainer: Trained, loop: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint and say where; collective. This process, or rank 0's, owns the folder from then on.

    What is half written has another name, and goes where saving fails. `loop` is what a user's loop keeps beside it.
    Raises: EnvironmentFailure where the disk is full or refuses it, or another run owns the folder.
    """
    return _written(_begun(folder, progress), folder, progress, state_of(trainer), loop, None)


class Saver:
    """Writes checkpoints while training goes on: each on a thread, of a copy in host memory; all ranks call it alike.

    The thread's messages go over a group of their own, since those of training are under way beside them.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._group: Group = None
        if dist.is_initialized():
            with unpinned():
                self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_seconds))
        # A thread begins on the first GPU, where torch's writer would then open a context for every rank of a host.
        first = (torch.cuda.set_device, (torch.cuda.current_device(),)) if torch.cuda.is_initialized() else (None, ())
        self._threads = ThreadPoolExecutor(1, "checkpoint", *first)
        self._under_way: Future[Path] | None = None

    def start(self, folder: Path, progress: Progress, trainer: Trained, loop: Mapping[str, Any] | None) -> None:
        """Begin to write a checkpoint, when the one before it is there. What the trainer holds may change at once.

        Raises: as `save`, of this one or the one before.
        """
        self.wait()
        part = _begun(folder, progress)
        copy = {name: _copied(name, value) for name, value in state_of(trainer).items()}
        held = {name: value for name, value in copy.items() if value is not None}
        with unpinned():
            self._under_way = self._threads.submit(_written, part, folder, progress, held, loop, self._group)

    def wait(self) -> Path | None:
        """Wait until what was begun is written; where it is, None where nothing was begun.

        Raises: as `save`.
        """
        under_way, self._under_way = self._under_way, None
        return None if under_way is None else under_way.result()

    def close(self) -> None:
        """Wait, and let the thread go."""
        self.wait()
        self._threads.shutdown()


def _begun(folder: Path, progress: Progress) -> Path:
    """An empty folder to write into, under a name that is none of a checkpoint."""
    part = folder / f".step-{progress.step:08d}.part"

    def begin() -> None:
        own(folder)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True, exist_ok=True)

    for_all(begin)
    return part


def _written(
    part: Path, folder: Path, progress: Progress, state: dict[str, Any], loop: Mapping[str, Any] | None, group: Group
) -> Path:
    """Write a state into `part`, which then gets the checkpoint's name."""
    whole, writer = folder / f"step-{progress.step:08d}", Writer(part)

    def end() -> None:
        write_text(part / "progress.json", json.dumps(asdict(progress)))
        if loop is not None:
            write_text(part / LOOP, json.dumps(loop))
        write_sums(part, writer.sums)
        shutil.rmtree(whole, ignore_errors=True)
        part.rename(whole)
        # Later ones, of another run, are not this run's to remove, and no reason to remove what was just written.
        kept = sorted(path for path in folder.glob("step-*") if FOLDER.fullmatch(path.name) and path.name <= whole.name)
        for old in kept[:-NUM_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    try:
        write_state(writer, state, no_dist=not dist.is_initialized(), group=group)
        for_all(end, group)
    except (CheckpointException, EnvironmentFailure) as error:
        # All ranks come here, or none.
        raise refused(error, folder, part, writer.needed_bytes, latest, group) from error
    return whole


def _copied(name: str, value: Tensor) -> Tensor | None:
    """What this process holds of a tensor, with its place in the whole, in host memory; None where that is nothing."""
    chunks = getattr(value, "__create_chunk_list__", None)
    if chunks is None:
        return value.detach().to("cpu", copy=True)
    pieces = {}
    for chunk in chunks():
        piece: Tensor = value.__get_tensor_shard__(MetadataIndex(name, chunk.offsets))  # type: ignore[attr-defined]
        if piece.numel():
            pieces[torch.Size(chunk.offsets)] = piece.detach().to("cpu", copy=True)
    return InPieces(value.shape, pieces) if pieces else None
