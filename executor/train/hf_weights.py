"""Weights of transformers' own files in a training of ours, and ours as a folder that transformers reads.

Every rank reads of the files what it keeps. One process writes: it holds the whole weights in host memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import MetadataIndex

from executor.run.checkpoint import Trained, weights_of
from executor.run.export import write_whole
from executor.train.hf_names import ModelNames, is_transposed, name_there, names_of
from profiles.errors import InputError
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.hf_task import read_transformers_config
from profiles.workloads.stored_values import WHOLE, Part, StoredValues
from profiles.workloads.workload import Workload


class Placed(Trained, Protocol):
    """This rank's part of a model of layers."""

    workload: Workload


def known_names(workload: Workload) -> ModelNames:
    """What transformers calls this model's weights.

    Raises: InputError where it has no such model.
    """
    spec = workload.spec
    names = names_of(str(spec.config.get("model_type"))) if spec.kind == "transformers" else None
    if names is None:
        raise InputError(f"{spec.title} is not a model of transformers: leave out weights = and export =")
    if spec.adapters.freezes:
        raise InputError(
            f"{spec.title} has adapters, which a folder of whole weights cannot hold: leave out weights = and export ="
        )
    return names


def load_weights(folder: Path, job: Placed) -> int:
    """Give a model the weights of a folder, as far as that has them; how many it has not. Collective.

    Raises: InputError where it holds none, or those of another model; ArtifactError where they are damaged.
    """
    names, num_layers = known_names(job.workload), len(job.workload.layers)
    stored, lacking = StoredValues(folder, _skeleton(job.workload, names)), []
    for ours, value in weights_of(job).items():
        there = name_there(names, ours.removeprefix("model."), num_layers)
        if there is None or not stored.has(there):
            lacking.append(ours)
            continue
        _fill(ours, value, functools.partial(_read, stored, names, there, value.shape))
    everyone: list[list[str]] = [lacking]
    if dist.is_initialized():
        everyone = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, lacking)
    return len(set().union(*everyone))


def _skeleton(workload: Workload, names: ModelNames) -> Any:
    """The model as transformers has it, without weights."""
    import transformers

    spec = workload.spec
    with torch.device("meta"), foreign_code(spec, f"{spec.title} cannot be built"):
        return getattr(transformers, names.auto_class).from_config(read_transformers_config(spec))


def _read(stored: StoredValues, names: ModelNames, there: str, wanted: torch.Size, part: Part) -> Tensor:
    """A part of a weight that is of shape `wanted` here, of memory that may be the file's."""
    if is_transposed(names, there):
        return stored.read(there, part[::-1]).T
    if stored.shape(there) == wanted:
        return stored.read(there, part)
    # Images' embeddings have another shape there, of the same elements in the same order.
    return stored.read(there, WHOLE).reshape(wanted)[part]


def _fill(name: str, own: Any, read: Callable[[Part], Tensor]) -> None:
    """Copy this rank's part of a weight, whose place the part knows."""
    with torch.no_grad():
        if not hasattr(own, "__create_chunk_list__"):
            own.copy_(read(WHOLE))
            return
        for chunk in own.__create_chunk_list__():
            part = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
            if chunk.sizes.numel():
                own.__get_tensor_shard__(MetadataIndex(name, chunk.offsets)).copy_(read(part))


def export_layers(folder: Path, job: Placed) -> Path:
    """Write the whole weights into a folder that transformers' `from_pretrained` reads; collective.

    Raises: InputError where it has no such model.
    """
    names = known_names(job.workload)
    write_whole(folder, job, lambda weights: _write(folder, weights, job.workload, names))
    return folder


def _write(folder: Path, weights: dict[str, Tensor], workload: Workload, names: ModelNames) -> None:
    module = _skeleton(workload, names)
    shapes: dict[str, nn.Parameter] = dict(module.named_parameters())
    state = {}
    for ours, value in weights.items():
        there = name_there(names, ours, len(workload.layers))
        if there is not None:
            whole = value.T.contiguous() if is_transposed(names, there) else value
            state[there] = whole.reshape(shapes[there].shape)
    module.load_state_dict(state, strict=False, assign=True)
    module.tie_weights()
    module.save_pretrained(folder)
