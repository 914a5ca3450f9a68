"""The norm of all gradients of a step, over whatever ranks hold parts of them: a loss hides what it would show.

AdamW takes a step of the same length whatever the gradients are multiplied by, and the first loss is that of the
weights that a run starts with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Shard

from executor.axes.experts import MARK

# Over which a sum of squares is still to be added up.
Groups = tuple[dist.ProcessGroup, ...]
# Elements that are squared at once: what a step holds is measured while the norm is taken.
PIECE = 2**18


def gradient_norm(parameters: Iterable[nn.Parameter], stages: dist.ProcessGroup | None) -> float:
    """The 2-norm of the gradients of a model whose `parameters` this rank holds, or its part of them; collective.

    `stages` are the ranks that hold the other stages of a pipeline, where there is one.
    """
    squares: dict[Groups, list[Tensor]] = {}
    device = torch.device("cpu")
    for parameter in parameters:
        if parameter.grad is None:
            continue
        local, groups = _held(parameter, parameter.grad)
        device = local.device
        squares.setdefault(groups, []).append(_sum_of_squares(local.detach()))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for groups, parts in squares.items():
        value = torch.stack(parts).sum()
        for group in groups:
            dist.all_reduce(value, group=group)
        total += value
    if stages is not None:
        dist.all_reduce(total, group=stages)
    return math.sqrt(float(total))


def _sum_of_squares(values: Tensor) -> Tensor:
    pieces = values.flatten().split(PIECE)
    return torch.stack([torch.linalg.vector_norm(piece, dtype=torch.float64) for piece in pieces]).square().sum()


def _held(parameter: nn.Parameter, gradient: Tensor) -> tuple[Tensor, Groups]:
    """What this rank holds of a gradient, and the groups whose ranks hold the rest."""
    if hasattr(parameter, MARK):
        return gradient, (getattr(parameter, MARK).get_group(),)
    # DDP keeps the local parts of DTensors under this attribute's layout.
    layout = getattr(parameter, "_st_info", None)
    if isinstance(gradient, DTensor):
        if any(isinstance(placement, Partial) for placement in gradient.placements):
            assert isinstance(parameter.data, DTensor)
            gradient = gradient.redistribute(placements=parameter.data.placements)
        local, mesh, placements = gradient.to_local(), gradient.device_mesh, gradient.placements
    elif layout is not None:
        local, mesh, placements = gradient, layout.mesh, layout.placements
    else:
        return gradient, ()
    return local, tuple(mesh.get_group(dim) for dim, place in enumerate(placements) if isinstance(place, Shard))
