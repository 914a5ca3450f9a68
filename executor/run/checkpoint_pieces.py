"""A rank's part of a fused weight, queries, keys and values of its heads, as the pieces of the whole that it is.

On a rank it is one tensor, and its neighbours' stand behind it; in a checkpoint every piece has its place in the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from profiles.workloads.tensor_splits import OfRanks


class InPieces(Tensor):
    """A tensor of which this process holds pieces, each with its place; DCP asks for them by these names."""

    pieces: dict[torch.Size, Tensor]

    @staticmethod
    def __new__(cls, shape: torch.Size, pieces: dict[torch.Size, Tensor]) -> InPieces:
        """A tensor of a shape, whose pieces are given by their offsets."""
        first = next(iter(pieces.values()))
        made: InPieces = Tensor._make_wrapper_subclass(cls, shape, dtype=first.dtype, device=first.device)
        made.pieces = pieces
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse to compute: it is saved and read, and nothing else."""
        raise NotImplementedError(f"{func} of a tensor in pieces")

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offsets, piece.shape) for offsets, piece in self.pieces.items()]

    def __create_write_items__(self, name: str, value: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties.create_from_tensor(self.pieces[chunk.offsets]),
                    size=self.shape,
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.pieces[index.offset]


def in_pieces(value: Tensor, dim: int, of_ranks: OfRanks) -> Tensor:
    """`value`, whose parts along `dim` stand rank by rank, as what it is of the whole."""
    if not isinstance(value, DTensor):
        return value
    local, found = value.to_local(), dict[torch.Size, Tensor]()
    for chunk in value.__create_chunk_list__():
        start = chunk.offsets[dim]
        for place, origin, length in within(of_ranks, start, start + chunk.sizes[dim]):
            offsets = [*chunk.offsets]
            offsets[dim] = origin
            found[torch.Size(offsets)] = local.narrow(dim, place - start, length)
    return InPieces(value.shape, found) if found else value


def within(of_ranks: OfRanks, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """What stands between two places of parts that stand rank by rank: at which, from where, and how much."""
    place = 0
    for first, last in (piece for pieces in of_ranks for piece in pieces):
        low, high = max(place, start), min(place + last - first, stop)
        if low < high:
            yield low, first + low - place, high - low
        place += last - first
