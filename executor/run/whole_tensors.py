"""What all ranks hold of a parameter, put together on rank 0: one parameter at a time, by global names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from executor.axes.experts import placed_expert
from executor.run.adamw_by_hand import own_part
from executor.trainer import Trainer
from profiles.workloads.tensor_splits import OfRanks

# Elements that are added up at once.
PIECE = 2**20


def placed(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """`value` with its place in the whole tensor, where it is a part that does not know it.

    DDP keeps the local parts of DTensors under the attribute `_st_info`.
    """
    value = placed_expert(value.detach(), parameter)
    layout = getattr(parameter, "_st_info", None)
    if layout is None or isinstance(value, DTensor) or value.dim() == 0:
        return value
    return DTensor.from_local(value, layout.mesh, layout.placements, run_check=False)


class Gatherer:
    """Puts the tensors of a trainer's parameters together; all ranks call its methods alike."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        everyone: list[dict[str, bool]] = [{} for _ in range(dist.get_world_size())]
        own = {name: parameter.requires_grad for name, parameter in trainer.named_parameters.items()}
        dist.all_gather_object(everyone, own)
        self.is_trained = {name: trains for names in everyone for name, trains in names.items()}
        # The first rank that has it sends it, in an order that all ranks go through.
        self.owners = {name: rank for rank, names in reversed([*enumerate(everyone)]) for name in names}
        others: list[dict[str, tuple[int, OfRanks]]] = [{} for _ in everyone]
        dist.all_gather_object(others, trainer.rearranged)
        self.rearranged = {name: order for orders in others for name, order in orders.items()}

    def whole(
        self, values: Callable[[nn.Parameter], Tensor | None], trained: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and whole tensors, on rank 0; elsewhere nothing, though all ranks must go to the end of it.

        `values` gives what a rank has of a parameter's; nothing is taken for zeros. With
        `trained`, of those that are not frozen alone.
        """
        rank, device = dist.get_rank(), self.trainer.device
        for name, owner in self.owners.items():
            if trained and not self.is_trained[name]:
                continue
            parameter = self.trainer.named_parameters.get(name)
            value = None if parameter is None else self._put_together(parameter, values(parameter))
            if owner == 0:
                if value is not None and rank == 0:
                    yield name, self._in_order(name, value)
            elif rank == owner:
                assert value is not None
                dist.send(torch.tensor(value.shape + (-1,) * (8 - value.dim()), device=device), 0)
                dist.send(value.contiguous(), 0)
            elif rank == 0:
                shape = torch.zeros(8, dtype=torch.int64, device=device)
                dist.recv(shape, owner)
                value = torch.empty([size for size in shape.tolist() if size >= 0], device=device)
                dist.recv(value, owner)
                yield name, self._in_order(name, value)

    def _put_together(self, parameter: nn.Parameter, value: Tensor | None) -> Tensor:
        found = placed(parameter if value is None else value, parameter)
        whole = found.full_tensor() if isinstance(found, DTensor) else found
        return torch.zeros_like(whole, dtype=torch.float32) if value is None else whole.float()

    def _in_order(self, name: str, value: Tensor) -> Tensor:
        """Parts of a fused weight as one device has them, not by the ranks that have some of each."""
        if name in self.rearranged:
            return _origins(value, *self.rearranged[name])
        return value


def _origins(value: Tensor, dim: int, of_ranks: OfRanks) -> Tensor:
    """A whole tensor whose pieces along `dim` stand rank by rank, each at its place."""
    found, place = value.clone(), 0
    for first, last in (piece for pieces in of_ranks for piece in pieces):
        found.narrow(dim, first, last - first).copy_(value.narrow(dim, place, last - first))
        place += last - first
    return found


def fingerprints(trainer: Trainer) -> dict[str, int]:
    """A number for the bits of each parameter that this rank holds, by name and place: copies must have the same."""
    found = {}
    for name, parameter in trainer.named_parameters.items():
        value = placed(parameter, parameter)
        where: tuple[object, ...] = ()
        if isinstance(value, DTensor):
            place: Sequence[int] = value.device_mesh.get_coordinate() or ()
            cut = [(at, index) for at, index in enumerate(place) if not value.placements[at].is_replicate()]
            where = (value.device_mesh.mesh_dim_names, *cut)
        elif trainer.device.type == "cuda":
            # Ranks of the tensor axis work out for themselves what GPUs add up in any order.
            where = (trainer.place.tensor,)
        found[f"{name} {where}"] = bits(own_part(value))
    return found


def bits(value: Tensor) -> int:
    """A number that is another for nearly any other bits."""
    kind = {2: torch.int16, 4: torch.int32}.get(value.element_size(), torch.uint8)
    total = 0
    for at, piece in enumerate(value.detach().contiguous().flatten().view(kind).split(PIECE)):
        places = torch.arange(1, piece.numel() + 1, device=piece.device)
        total = (total * 31 + at + int((piece.long() * places).sum())) % 2**61
    return total


def differing(everyone: list[dict[str, int]]) -> str:
    """The name of a parameter whose copies are not the same, "" where all are."""
    seen: dict[str, int] = {}
    for own in everyone:
        for key, value in own.items():
            if seen.setdefault(key, value) != value:
                return key.partition(" ")[0]
    return ""
