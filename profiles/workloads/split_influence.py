"""Which features feed which ranks' features, and how they are shared out.

A feature feeds another where the gradient of the second with respect to the first is not zero: whatever stands between
them, its order of heads, queries, keys and values included, shows in that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from profiles.workloads.tensor_splits import OfRanks, Pieces

# By name, for each rank and dimension which indices feed its features.
Masks: TypeAlias = dict[str, list[list[Tensor]]]


def influence(reached: list[Tensor], own: Mapping[str, list[Tensor]], degree: int) -> Masks:
    """Which indices of tensors feed each rank's part of the last dimension of `reached`."""
    names = [name for name, tensors in own.items() for _ in tensors]
    tensors = [tensor for group in own.values() for tensor in group]
    masks: Masks = {name: [] for name in own}
    for rank in range(degree):
        total: Any = 0
        for value in reached:
            part = value.chunk(degree, -1)[rank]
            total = total + (part * torch.randn_like(part)).sum()
        found = torch.autograd.grad(total, tensors, retain_graph=True, allow_unused=True) if tensors else ()
        for name, tensor, gradient in zip(names, tensors, found, strict=True):
            hit = torch.zeros(tensor.shape, dtype=torch.bool) if gradient is None else gradient != 0
            by_dim = [_any_but(hit, dim) for dim in range(tensor.dim())]
            if len(masks[name]) == rank:
                masks[name].append(by_dim)
            else:
                masks[name][rank] = [a | b for a, b in zip(masks[name][rank], by_dim, strict=True)]
    return masks


def _any_but(hit: Tensor, dim: int) -> Tensor:
    return hit.movedim(dim, 0).flatten(1).any(1) if hit.dim() > 1 else hit


def pieces_of(mask: Tensor) -> Pieces:
    """The indices at which a mask is set, as consecutive ones."""
    marked = mask.nonzero().flatten().tolist()
    found: list[tuple[int, int]] = []
    for index in marked:
        if found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return tuple(found)


def shares(masks: list[Tensor]) -> OfRanks | None:
    """Each rank's indices, where they are as many on every rank and all belong to some; else None."""
    counts = {int(mask.sum()) for mask in masks}
    if len(counts) != 1 or not bool(torch.stack(masks).any(0).all()):
        return None
    return tuple(pieces_of(mask) for mask in masks)


def filled(masks: list[Tensor]) -> OfRanks | None:
    """As `shares`, where an index that feeds nothing, as a unit that is never on, goes with those beside it."""
    for is_backward in (False, True):
        stacked = torch.stack(masks)
        stacked = stacked.flip(1) if is_backward else stacked
        found = stacked.any(0)
        if not bool(found.any()):
            return None
        # Of every index the last one up to it that feeds something; before the first, that one.
        places = torch.where(found, torch.arange(len(found)), -1).cummax(0).values
        stacked = stacked[:, places.clamp(min=int(found.nonzero()[0]))]
        given = shares(list(stacked.flip(1) if is_backward else stacked))
        if given is not None:
            return given
    return None


def are_apart(masks: list[Tensor]) -> bool:
    """Whether no index belongs to two ranks."""
    return bool((torch.stack(masks).sum(0) <= 1).all())


def are_whole(masks: list[Tensor]) -> bool:
    """Whether every index belongs to every rank."""
    return all(bool(mask.all()) for mask in masks)
