"""A task's module over the tensor axis, by the split that is found for it and proven on a batch.

Linears that give features to each rank feed those that take them, and add up; everything around them stays whole.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from profiles.workloads.split_ranks import Ranks, run_as_rank, split_dims, taken
from profiles.workloads.tensor_splits import OfRanks, Pieces, Split


class _Group(Ranks):
    """A rank of the tensor axis."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__(mesh.get_local_rank())
        self.mesh = mesh

    def entered(self, path: str, value: Tensor) -> Tensor:
        """The value; its gradients are summed over the ranks."""
        whole = DTensor.from_local(value, self.mesh, (Replicate(),), run_check=False)
        return whole.to_local(grad_placements=(Partial(),))

    def added(self, path: str, value: Tensor, bias: Tensor | None) -> Tensor:
        """The sum over the ranks, and the bias."""
        parts = DTensor.from_local(value, self.mesh, (Partial(),), run_check=False)
        total: Tensor = parts.redistribute(placements=(Replicate(),)).to_local()
        # No view of what autograd may not see changed in place.
        return total.clone() if bias is None else total + bias

    def part(self, parameter: Tensor, dim: int, pieces: Pieces) -> Tensor:
        """What this rank holds of a weight."""
        assert isinstance(parameter, DTensor)
        return parameter.to_local()


def split_module(module: nn.Module, split: Split, mesh: DeviceMesh) -> dict[str, tuple[int, OfRanks]]:
    """Keep this rank's part of the weights that are split over the one axis of `mesh`, and run with it.

    Gives by name those that stand rank by rank, along which dimension, and each rank's pieces of the whole.
    """
    rearranged: dict[str, tuple[int, OfRanks]] = {}
    for path, style in split.styles.items():
        part, pieces = module.get_submodule(path), split.pieces[path]
        for name, dim in split_dims(part, style, path in split.transposed).items():
            _shard(part, name, dim, pieces, mesh)
            if not _is_in_order(pieces):
                rearranged[f"{path}.{name}"] = (dim, pieces)
    # For good: what would undo it is dropped.
    run_as_rank(module, split, _Group(mesh)).pop_all()
    return rearranged


def agreed(split: Split, mesh: DeviceMesh) -> Split:
    """The split that the first rank found; collective. Another machine may round what is just close enough."""
    told: list[Any] = [split]
    dist.broadcast_object_list(told, group=mesh.get_group(), group_src=0)
    found: Split = told[0]
    return found


def _is_in_order(pieces: OfRanks) -> bool:
    """Whether the whole is what the ranks have, one behind the other."""
    flat = [piece for own in pieces for piece in own]
    return all(stop == start for (_, stop), (start, _) in itertools.pairwise(flat))


def _shard(part: nn.Module, name: str, dim: int, pieces: OfRanks, mesh: DeviceMesh) -> None:
    whole = getattr(part, name)
    by_rank = torch.cat([taken(whole.detach(), dim, own) for own in pieces], dim)
    # Every rank has the same full weights already: nothing to broadcast.
    own = distribute_tensor(by_rank, mesh, (Shard(dim),), src_data_rank=None)
    part.register_parameter(name, nn.Parameter(own, requires_grad=whole.requires_grad))
