"""Checkpoints: weights and moments by the names that one device would give them, saved and restored by torch's DCP.

Every rank writes what it holds; a checkpoint of one layout can be read by another, since names are global and shards
know their place. A checkpoint is a folder that gets its name when it is whole.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from executor.axes.loss_scale import ScaleState
from executor.axes.part import Part
from executor.run.checkpoint_index import DTYPES, FOREIGN, Reader, Writer, by_one_process, check_names, read_index
from executor.run.checkpoint_pieces import in_pieces
from executor.run.whole_tensors import placed
from planner.plans import Plan
from profiles.artifacts import STRICT, validate
from profiles.errors import ArtifactError, InputError
from profiles.inputs.foreign import read_json
from profiles.workloads.buffers import saved_buffers
from profiles.workloads.tensor_splits import OfRanks
from profiles.workloads.workload import Workload

FOLDER = re.compile(r"step-(\d{8})")
# What a user's own loop saves beside.
LOOP = "loop.json"
# What names of an optimizer's tensors begin with.
OPTIMIZER = "optimizer."


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a checkpoint is of: so many steps were taken, of this model, with this seed and global batch.

    `scale` is that of the losses in fp16. `fused_parts_split` is of older ones, in which the rows of a fused
    query-key-value lie rank by rank.
    """

    __pydantic_config__ = STRICT

    step: int
    model: str
    seed: int
    global_batch_size: int
    fused_parts_split: int = 1
    scale: ScaleState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """Where checkpoints go, after every how many steps, and whether to go on from one: the newest, or that `chosen`."""

    __pydantic_config__ = STRICT

    folder: str
    every: int
    resume: bool = False
    chosen: str = ""

    @property
    def start(self) -> Path | None:
        """The checkpoint to go on from, None for the first step."""
        if not self.resume:
            return None
        return Path(self.chosen) if self.chosen else latest(Path(self.folder))

    def is_due(self, num_steps: int) -> bool:
        """Whether a checkpoint is saved after so many steps."""
        return num_steps % self.every == 0


class Trained(Protocol):
    """This rank's part of a model that is trained, with what its optimizer keeps."""

    @property
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by global name."""

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Buffers that belong to the state, by global name."""

    @property
    def moments_by_parameter(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """What the optimizer keeps of each parameter that this rank updates."""

    @property
    def rearranged(self) -> dict[str, tuple[int, OfRanks]]:
        """Of fused weights that are split, the dimension and what each rank has of the whole, by global name."""

    def make_moments(self, names: Collection[str]) -> None:
        """Let the optimizer make what it keeps of some parameters, where it has taken no step."""

    def updates(self, parameter: nn.Parameter) -> bool:
        """Whether this rank updates the parameter, rather than receiving it."""


def checkpoints_of(folder: Path | None, every: int, resume: bool, max_restarts: int) -> Checkpoints | None:
    """What options ask for.

    Raises: InputError where one of them needs a folder.
    """
    if folder is None:
        if resume or max_restarts:
            raise InputError("--resume and --max-restarts need checkpoints: give --checkpoint DIR")
        return None
    return Checkpoints(folder=str(folder.absolute()), every=every, resume=resume)


def progress_of(plan: Plan, workload: Workload, seed: int, step: int) -> Progress:
    """What a checkpoint of a run is of."""
    return Progress(
        step=step,
        model=workload.spec.digest,
        seed=seed,
        global_batch_size=plan.global_batch_size,
    )


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder."""
    found = [path for path in folder.glob("step-*") if FOLDER.fullmatch(path.name)]
    return max(found, key=lambda path: path.name, default=None)


def read_progress(path: Path) -> Progress:
    """What a checkpoint is of.

    Raises: ArtifactError where the folder is not a checkpoint of ours.
    """
    fields = read_json(path / "progress.json", FOREIGN)
    if not isinstance(fields, dict):
        raise ArtifactError(f"{path / 'progress.json'} is not an object; {FOREIGN}")
    return validate(fields, Progress, str(path))


def check_progress(path: Path, found: Progress, wanted: Progress) -> None:
    """Hold a checkpoint against the run that wants to go on from it.

    Raises: InputError that names what differs.
    """
    for name in ("model", "seed", "global_batch_size", "fused_parts_split"):
        if getattr(found, name) != getattr(wanted, name):
            raise InputError(
                f"{path} has {name}={getattr(found, name)}, the run {getattr(wanted, name)}: its losses would differ"
            )


def restore(path: Path, trainer: Trained) -> None:
    """Read a checkpoint into a trainer that has taken no step; collective.

    Raises: ArtifactError where the folder is damaged, or of another model.
    """
    kept = [name.removeprefix(OPTIMIZER) for name in read_index(path).tensors if name.startswith(OPTIMIZER)]
    if kept:
        # Of parameters that no loss uses, optimizers keep nothing.
        trainer.make_moments({name.partition(".")[2] for name in kept})
    _load(path, state_of(trainer), no_dist=not dist.is_initialized())


def save_weights(folder: Path, trainer: Trained) -> None:
    """Write the weights alone; collective."""
    write_state(Writer(folder), weights_of(trainer))


def restore_weights(folder: Path, trainer: Trained) -> None:
    """Read the weights alone into a trainer that has taken no step; collective."""
    _load(folder, weights_of(trainer))


def restore_part(folder: Path, part: Part) -> None:
    """Read the weights of a part of a model that is not trained; collective."""
    named = {part.global_name(path): parameter for path, parameter in part.named_parameters()}
    _load(folder, {f"model.{name}": _in_place(own, own, part.rearranged.get(name)) for name, own in named.items()})


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """The whole weights of a folder by name, by this process alone."""
    index = read_index(folder)
    tensors = {name: torch.empty(saved.shape, dtype=DTYPES[saved.dtype]) for name, saved in index.tensors.items()}
    _load(folder, dict(tensors), no_dist=True)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def save_whole(folder: Path, model: nn.Module) -> None:
    """Write the weights of a complete model, by this process alone, as `save_weights` would."""
    write_state(Writer(folder), _whole(model), no_dist=True)


def load_whole(folder: Path, model: nn.Module) -> None:
    """Read weights of any layout into a complete model, by this process alone."""
    _load(folder, _whole(model), no_dist=True)


def write_state(
    writer: Writer, state: dict[str, Any], *, no_dist: bool = False, group: dist.ProcessGroup | None = None
) -> None:
    """Write tensors that know their place; collective over `group`, or all ranks, unless one process writes alone."""
    # Warnings are the whole process's: a thread that saves beside training must leave them alone.
    with by_one_process() if no_dist else contextlib.nullcontext():
        dcp_save(state, storage_writer=writer, no_dist=no_dist, process_group=group)


def _load(folder: Path, state: dict[str, Any], *, no_dist: bool = False) -> None:
    check_names(folder, read_index(folder), state)
    try:
        with by_one_process():
            dcp_load(state, storage_reader=Reader(folder), no_dist=no_dist)
    except CheckpointException as error:
        # Not what torch says: it advises to unpickle the file without care.
        kind = type(next(iter(error.failures.values()))[0]).__name__
        words = f"its tensors cannot be read as such ({kind}); resume from another checkpoint"
        raise ArtifactError(f"{folder} is damaged: {words}") from error


def weights_of(trainer: Trained) -> dict[str, Any]:
    """Weights and buffers by global name, as tensors that know their place."""
    return {name: value for name, value in state_of(trainer).items() if name.startswith("model.")}


def _whole(model: nn.Module) -> dict[str, Any]:
    named = dict(model.named_parameters()) | saved_buffers(model)
    return {f"model.{name}": value.detach() for name, value in named.items()}


def state_of(trainer: Trained) -> dict[str, Any]:
    """Weights, buffers and the moments that are there, by global name, as tensors that know their place."""
    state: dict[str, Any] = {f"model.{name}": buffer for name, buffer in trainer.buffers.items()}
    moments = trainer.moments_by_parameter
    for name, parameter in trainer.named_parameters.items():
        state[f"model.{name}"] = _in_place(parameter, parameter, trainer.rearranged.get(name))
        if not trainer.updates(parameter):
            continue
        state |= {
            f"{OPTIMIZER}{key}.{name}": _in_place(value, parameter, trainer.rearranged.get(name))
            for key, value in moments.get(parameter, {}).items()
        }
    return state


def _in_place(value: Tensor, parameter: nn.Parameter, rearranged: tuple[int, OfRanks] | None) -> Tensor:
    """`value` with its place in the whole tensor, in pieces where it stands in another order there."""
    found = placed(value, parameter)
    return found if rearranged is None or found.dim() == 0 else in_pieces(found, *rearranged)
