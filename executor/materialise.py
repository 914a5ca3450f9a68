"""A part of a model that is on the meta device gets its values: this rank's of each tensor, and no more.

Splits and shards are there already; no more than one group of tensors, such as a block, is whole at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from executor.axes.part import Part
from executor.run.checkpoint_pieces import within
from profiles.errors import InputError
from profiles.workloads.meta_values import MetaValues, Places, Read, look, put, tensor_places
from profiles.workloads.tensor_splits import OfRanks


def materialise(part: Part, values: MetaValues) -> None:
    """Give every tensor of `part` that is on the meta device its value, on the device of the values.

    Raises: InputError that names one which has none.
    """
    places = {part.global_name(path): own for path, own in tensor_places(part).items()}
    for group in values.groups:
        wanted = [name for name in group.names if name in places]
        if not wanted:
            continue
        with values.of(group, wanted) as read:
            for name in wanted:
                _fill(places.pop(name), name, read, part.rearranged.get(name))
    if places:
        raise InputError(f"{values.name}: {min(places)} is on the meta device, and nothing gives it a value")


def _fill(places: Places, name: str, read: Read, order: tuple[int, OfRanks] | None) -> None:
    tensor = look(places)
    if not isinstance(tensor, DTensor):
        put(places, read(name, ()))
        return
    local = _local(tensor, name, read, order)
    made = DTensor.from_local(
        local, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    put(places, nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made)


def _alone(value: Tensor) -> Tensor:
    """A tensor in memory of its own, without the rest of what it may be a part of."""
    is_alone = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
    return value if is_alone else value.clone(memory_format=torch.contiguous_format)


def _local(tensor: DTensor, name: str, read: Read, order: tuple[int, OfRanks] | None) -> Tensor:
    """What this rank has of a tensor, in memory of its own."""
    looks = tensor.to_local()
    if not looks.numel():
        return read(name, tuple(slice(0, 0) for _ in looks.shape)).new_empty(looks.shape)
    (chunk,) = tensor.__create_chunk_list__()
    part = [slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True)]
    if order is None:
        return _alone(read(name, tuple(part)))
    dim, of_ranks = order
    pieces = []
    for _, origin, length in within(of_ranks, part[dim].start, part[dim].stop):
        part[dim] = slice(origin, origin + length)
        pieces.append(read(name, tuple(part)))
    return torch.cat(pieces, dim)
