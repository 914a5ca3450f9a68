"""What a checkpoint holds, as JSON: which part of which tensor lies where, read without running anything.

torch's DCP keeps this as a pickle, `.metadata`, and a pickle runs what its writer wants. It is written as before, for
other programs, and never read here: beside it stands `index.json`. The tensors themselves are read by torch with
`weights_only`; values of other kinds, which DCP would unpickle, cannot be named in the index.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from executor.run.checkpoint_sums import SummedFiles, SummedInfo, check_room, hexadecimal
from profiles.artifacts import STRICT, validate
from profiles.errors import ArtifactError
from profiles.files import write_text
from profiles.inputs.foreign import read_json

INDEX = "index.json"
# What the archive of a tensor takes besides, with its lines in both indices.
ITEM_BYTES = 3 * 2**10
FOREIGN = "the folder is not a checkpoint of this program"
# As DCP names the files of a rank; nothing outside the folder has such a name.
FILE = re.compile(r"__\d+_\d+\.distcp")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DTYPES = {
    str(dtype): dtype for dtype in (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a tensor, `sizes` elements from `offsets` on: `num_bytes` of `file` from byte `start` on."""

    __pydantic_config__ = STRICT

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTensor:
    """A whole tensor and the pieces that it was saved in."""

    __pydantic_config__ = STRICT

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """All tensors of a checkpoint by their global names."""

    __pydantic_config__ = STRICT

    tensors: dict[str, SavedTensor]


class Writer(FileSystemWriter):
    """DCP's writer of a folder, which leaves the index there too.

    On the rank that coordinates, `needed_bytes` are those of all ranks' tensors, `sums` the checksums of their files.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fs: SummedFiles = SummedFiles()
        self.needed_bytes = 0
        self.sums: dict[str, str] = {}

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Look, on one rank and before anything is written, whether there is room.

        Raises: OSError where there is not.
        """
        self.needed_bytes = sum(ITEM_BYTES + _num_bytes(item.tensor_data) for plan in plans for item in plan.items)
        check_room(Path(self.path), self.needed_bytes)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's tensors, with the checksum of their file.

        Raises: OSError where the system refuses it.
        """
        try:
            results = super().write_data(plan, planner).value()
        except Exception as error:
            raise self.fs.refused or error from error
        summed: Future[list[WriteResult]] = Future()
        summed.set_result([replace(one, storage_data=self._summed(one.storage_data)) for one in results])
        return summed

    def _summed(self, info: _StorageInfo) -> SummedInfo:
        checksum = hexadecimal(self.fs.sums[info.relative_path])
        return SummedInfo(info.relative_path, info.offset, info.length, info.transform_descriptors, checksum)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write DCP's own index, then ours; called on one rank.

        Raises: EnvironmentFailure where it cannot be written.
        """
        self.sums = {one.storage_data.relative_path: one.storage_data.checksum for of in results for one in of}
        results = [[replace(one, storage_data=one.storage_data.plain()) for one in of] for of in results]
        super().finish(metadata, results)
        write_text(Path(self.path) / INDEX, json.dumps(asdict(_index_of(metadata, results))))


class Reader(FileSystemReader):
    """DCP's reader of a folder, which takes our index for its own."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """What the folder holds.

        Raises: ArtifactError where it is damaged or foreign.
        """
        metadata = _metadata_of(read_index(Path(self.path)))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


@contextlib.contextmanager
def by_one_process() -> Iterator[None]:
    """While entered, torch does not warn where one process alone saves or loads, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def read_index(folder: Path) -> Index:
    """The index of a checkpoint, held against the files that lie there.

    Raises: ArtifactError where the folder was not saved by this program, or something of it is missing or damaged.
    """
    fields = read_json(folder / INDEX, FOREIGN)
    if not isinstance(fields, dict):
        raise ArtifactError(f"{folder / INDEX} is not an object; {FOREIGN}")
    index = validate(fields, Index, str(folder / INDEX))
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if FILE.fullmatch(path.name)}
    for name, tensor in index.tensors.items():
        reason = _fault(tensor, sizes)
        if reason:
            raise ArtifactError(f"{folder} is damaged: {name}: {reason}; resume from another checkpoint")
    return index


def check_names(folder: Path, index: Index, state: dict[str, Any]) -> None:
    """Hold a checkpoint against what is to be read from it.

    Raises: ArtifactError where a tensor is missing or has another shape.
    """
    for name, value in state.items():
        if name not in index.tensors:
            raise ArtifactError(f"{folder} has no {name}: it was saved from another model, or is damaged")
        shape = index.tensors[name].shape
        if shape != tuple(value.shape):
            raise ArtifactError(f"{folder} has {name} of shape {shape}, the model has shape {tuple(value.shape)}")


def _fault(tensor: SavedTensor, sizes: dict[str, int]) -> str:
    """What is wrong with a tensor of the index, "" for nothing; `sizes` are bytes by file."""
    if tensor.dtype not in DTYPES:
        return f"a dtype {tensor.dtype} is never saved"
    covered = 0
    for piece in tensor.pieces:
        if piece.file not in sizes:
            return f"its file {piece.file} is missing"
        if not 0 <= piece.start <= piece.start + piece.num_bytes <= sizes[piece.file]:
            return f"{piece.file} has {sizes[piece.file]} bytes, it should lie at {piece.start} + {piece.num_bytes}"
        if not len(piece.offsets) == len(piece.sizes) == len(tensor.shape):
            return f"a piece has {len(piece.sizes)} dims, the tensor {len(tensor.shape)}"
        bounds = zip(piece.offsets, piece.sizes, tensor.shape, strict=True)
        if not all(0 <= start <= start + size <= whole for start, size, whole in bounds):
            return f"a piece of {piece.sizes} at {piece.offsets} is outside of {tensor.shape}"
        covered += torch.Size(piece.sizes).numel()
    return "" if covered >= torch.Size(tensor.shape).numel() else "pieces are missing"


def _num_bytes(data: TensorWriteData | None) -> int:
    return 0 if data is None else data.chunk.sizes.numel() * data.properties.dtype.itemsize


def _index_of(metadata: Metadata, results: list[list[WriteResult]]) -> Index:
    """The index of what the ranks wrote; torch 2.11 does not note in `metadata` where that lies."""
    written = [result for of_rank in results for result in of_rank]
    places = {(result.index.fqn, result.index.offset): result.storage_data for result in written}
    return Index(
        tensors={
            name: SavedTensor(
                dtype=str(saved.properties.dtype),
                shape=tuple(saved.size),
                pieces=tuple(_piece(chunk, places[name, chunk.offsets]) for chunk in saved.chunks),
            )
            for name, saved in metadata.state_dict_metadata.items()
            if isinstance(saved, TensorStorageMetadata)
        }
    )


def _piece(chunk: ChunkStorageMetadata, info: _StorageInfo) -> Piece:
    return Piece(
        offsets=tuple(chunk.offsets),
        sizes=tuple(chunk.sizes),
        file=info.relative_path,
        start=info.offset,
        num_bytes=info.length,
    )


def _metadata_of(index: Index) -> Metadata:
    """DCP's own words for an index."""
    tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places = {}
    for name, saved in index.tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in saved.pieces]
        properties = TensorProperties(dtype=DTYPES[saved.dtype])
        tensors[name] = TensorStorageMetadata(properties, torch.Size(saved.shape), chunks)
        for number, piece in enumerate(saved.pieces):
            place = MetadataIndex(name, piece.offsets, number)
            places[place] = _StorageInfo(piece.file, piece.start, piece.num_bytes)
    return Metadata(state_dict_metadata=tensors, storage_data=places)
