"""A batch in the hands of a user's loop, cut into the micro-batches of a plan. Whatever holds tensors is cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from profiles.errors import InputError
from profiles.ranks.rank import Rank


def split_batch(batch: Any, size: int, count: int) -> list[Any]:
    """`count` micro-batches of `size` samples each, in the batch's own structure.

    Tensors are cut along their first dimension, lists with one entry for each sample too; anything else is in all of
    them. Raises: InputError where there is another number of samples.
    """
    whole = size * count
    found = sorted(_counts(batch))
    if whole not in found:
        has = " or ".join(map(str, found)) or "no tensors"
        raise InputError(
            f"the batch has {has} samples: a replica takes {whole} a step, {count} micro-batches of {size}"
        )
    return [_part(batch, whole, start, start + size) for start in range(0, whole, size)]


def first_micro_batch(example: Any, size: int, count: int) -> Any:
    """The first `size` samples of an example, which may have more or fewer than the `count` micro-batches of a step.

    One with fewer, or whose parts do not tell how many it has, is given as it is.
    """
    found = _counts(example)
    if size * count in found:
        return split_batch(example, size, count)[0]
    has = max(found, default=0)
    return _part(example, has, 0, size) if len(found) == 1 and has > size else example


def has_samples(batch: Any, size: int) -> bool:
    """Whether a batch may have `size` samples."""
    return size in _counts(batch)


def on_device(value: Any, device: torch.device) -> Any:
    """A batch, or what is in one, with its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: on_device(part, device) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_device(part, device) for part in value)
    return value


def mean_over_replicas(loss: Tensor | None, rank: Rank) -> Tensor:
    """The mean loss over all replicas, of which one rank each has all of its own; collective."""
    if not dist.is_initialized() or rank.num_ranks == 1:
        assert loss is not None
        return loss
    told = torch.zeros(2, dtype=torch.float32, device=rank.device)
    if loss is not None:
        told += torch.stack([loss.detach().float(), torch.ones_like(loss, dtype=torch.float32)])
    dist.all_reduce(told)
    return told[0] / told[1]


def _counts(value: Any) -> set[int]:
    """How many samples parts of a batch may have."""
    if isinstance(value, Tensor):
        return {len(value)} if value.dim() else set()
    if isinstance(value, Mapping):
        return set().union(*map(_counts, value.values()))
    if isinstance(value, tuple):
        return set().union(*map(_counts, value))
    return {len(value)} if isinstance(value, list) else set()


def _part(value: Any, whole: int, start: int, stop: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:stop] if value.dim() and len(value) == whole else value
    if isinstance(value, Mapping):
        return {name: _part(part, whole, start, stop) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_part(part, whole, start, stop) for part in value)
    return value[start:stop] if isinstance(value, list) and len(value) == whole else value
