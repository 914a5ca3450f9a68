"""Weights of transformers' own files in a training of ours, and ours as a folder that transformers reads.

One process reads, and one writes: it holds the whole weights in host memory. Ranks are sent one tensor at a time, and
keep their part of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import MetadataIndex

from executor.run.checkpoint import Trained, load_tensors, save_weights, weights_of
from executor.train.hf_names import ModelNames, is_transposed, name_there, names_of
from profiles.errors import InputError
from profiles.files import ensure_folder
from profiles.inputs.foreign import shown
from profiles.ranks.rank import wait_for_first
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.hf_task import read_transformers_config
from profiles.workloads.workload import Workload

# One process reads while the others wait.
READ_SECONDS = 3600.0


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
        raise InputError(f"{spec.title} is no model of transformers: leave out weights = and export =")
    if spec.adapters.freezes:
        raise InputError(f"{spec.title} has adapters, which a folder of whole weights has not: leave out export =")
    return names


def load_weights(folder: Path, job: Placed, rank: int, device: torch.device) -> int:
    """Give a model the weights of a folder, as far as that has them; how many it has not. Collective.

    Raises: InputError where it holds none, or those of another model.
    """
    names, own = known_names(job.workload), {name.removeprefix("model."): t for name, t in weights_of(job).items()}
    everyone: list[Any] = [sorted(own)] * (dist.get_world_size() if dist.is_initialized() else 1)
    if len(everyone) > 1:
        dist.all_gather_object(everyone, sorted(own))
    every = sorted(set().union(*everyone))
    found: dict[str, Tensor] = {}
    if rank == 0:
        found = _read(folder, job.workload, names, every)
    if len(everyone) > 1:
        wait_for_first("weights", READ_SECONDS)
    told: list[Any] = [{name: (tuple(value.shape), value.dtype) for name, value in found.items()}]
    if len(everyone) > 1:
        dist.broadcast_object_list(told)
    for name, (shape, dtype) in told[0].items():
        whole = found[name].to(device) if rank == 0 else torch.empty(shape, dtype=dtype, device=device)
        if len(everyone) > 1:
            dist.broadcast(whole, src=0)
        if name in own:
            _keep_part(name, own[name], whole)
    return len(every) - len(told[0])


def _read(folder: Path, workload: Workload, names: ModelNames, every: list[str]) -> dict[str, Tensor]:
    """The weights of a folder by our names, in our shapes; without those that it lacks."""
    import transformers

    spec = workload.spec
    with foreign_code(spec, f"{spec.title}: the weights in {shown(str(folder))} do not fit"):
        module, told = getattr(transformers, names.auto_class).from_pretrained(
            folder,
            config=read_transformers_config(spec),
            dtype="auto",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    state = module.state_dict()
    lacking, found = set(told["missing_keys"]), {}
    for ours in every:
        there = name_there(names, ours, len(workload.layers))
        if there is not None and there in state and there not in lacking:
            found[ours] = state[there].T.contiguous() if is_transposed(names, there) else state[there]
    if not found:
        raise InputError(f"{spec.title}: the weights in {shown(str(folder))} are of another model: none fits")
    return {name: _shaped(name, value, workload) for name, value in found.items()}


def _shaped(name: str, value: Tensor, workload: Workload) -> Tensor:
    """A weight in our shape: images' embeddings have another there, of the same elements in the same order."""
    position, _, path = name.partition(".")
    with torch.device("meta"):
        wanted = workload.build_layer(int(position)).get_parameter(path).shape
    if value.numel() != wanted.numel():
        raise InputError(
            f"{workload.spec.title}: the weights have {name} of shape {tuple(value.shape)}, the model {tuple(wanted)}"
        )
    return value.reshape(wanted)


def _keep_part(name: str, own: Any, whole: Tensor) -> None:
    """Copy this rank's part of a whole tensor, whose place the part knows."""
    with torch.no_grad():
        if not hasattr(own, "__create_chunk_list__"):
            own.copy_(whole)
            return
        for chunk in own.__create_chunk_list__():
            part = whole
            for dim, (start, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                part = part.narrow(dim, start, size)
            own.__get_tensor_shard__(MetadataIndex(f"model.{name}", chunk.offsets)).copy_(part)


def export_layers(folder: Path, job: Placed) -> Path:
    """Write the whole weights into a folder that transformers' `from_pretrained` reads; collective.

    Raises: InputError where it has no such model.
    """
    names = known_names(job.workload)
    ensure_folder(folder)
    parts, is_first = folder / ".parts", not dist.is_initialized() or dist.get_rank() == 0
    if is_first:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
    if dist.is_initialized():
        dist.barrier()
    save_weights(parts, job)
    if is_first:
        _write(folder, load_tensors(parts), job.workload, names)
        shutil.rmtree(parts, ignore_errors=True)
    if dist.is_initialized():
        dist.barrier()
    return folder


def _write(folder: Path, weights: dict[str, Tensor], workload: Workload, names: ModelNames) -> None:
    import transformers

    with torch.device("meta"):
        module: Any = getattr(transformers, names.auto_class).from_config(read_transformers_config(workload.spec))
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
