"""Checksums of the files of a checkpoint: taken of what is written as it is written, held against what is read."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint.filesystem import FileSystem, _StorageInfo

from profiles.files import write_text
from profiles.inputs.foreign import read_json
from profiles.units import format_bytes

# Written last: what is named in it was whole. Checkpoints of before have none, and are taken as they are.
SUMS = "checksums.json"
KIND = "crc32"
CHUNK_BYTES = 2**22
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class SummedInfo(_StorageInfo):
    """Where a tensor lies, as DCP passes it from rank to rank, and the checksum of the file that it lies in."""

    checksum: str = ""

    def plain(self) -> _StorageInfo:
        """The same in DCP's own words, which other programs can read."""
        return _StorageInfo(self.relative_path, self.offset, self.length, self.transform_descriptors)


class SummedFiles(FileSystem):
    """DCP's way of writing files, which sums what it is given, and knows what the system refused.

    torch's archive writer turns that into words about positions.
    """

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}
        self.refused: OSError | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        """A stream of a file."""
        try:
            with super().create_stream(path, mode) as stream:
                yield cast(io.IOBase, _Summed(stream, self, Path(path).name)) if "w" in mode else stream
        except OSError as error:
            self.refused = self.refused or error
            raise


class _Summed:
    """A stream that is written from its begin to its end."""

    def __init__(self, stream: Any, files: SummedFiles, name: str) -> None:
        self._stream, self._files, self._name = stream, files, name
        files.sums[name] = 0

    def write(self, data: Any) -> int:
        """Write the bytes, and count them in."""
        try:
            written: int = self._stream.write(data)
        except OSError as error:
            self._files.refused = self._files.refused or error
            raise
        self._files.sums[self._name] = zlib.crc32(data, self._files.sums[self._name])
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def check_room(folder: Path, num_bytes: int) -> None:
    """Check that a disk has room, before half of a checkpoint is written.

    Raises: OSError where it has not.
    """
    if shutil.disk_usage(folder).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the disk, or what is allowed of it, is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def no_room(folder: Path, num_bytes: int) -> str:
    """What is said of a full disk; asked for once what was half written is gone."""
    free = shutil.disk_usage(folder).free
    need = f"no space left on {folder}: need {format_bytes(num_bytes)}"
    # A quota, or somebody who has made room since.
    return f"{need}, {format_bytes(free)} free{' but refused (a quota?)' if free >= num_bytes else ''}"


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write the checksums of a folder's files: those given, and those of the small files beside.

    Raises: EnvironmentFailure where it cannot be written.
    """
    beside = {path.name: _sum_of(path) for path in folder.glob("*.json")}
    write_text(folder / SUMS, json.dumps({KIND: {**sums, **beside}}, indent=0))


def damage(folder: Path, place: int = 0, num_places: int = 1) -> str:
    """What is wrong with a folder's files, "" for nothing; one looks at every so many-th of them.

    Ignores: folders without checksums.
    """
    if not (folder / SUMS).exists():
        return ""
    fields = read_json(folder / SUMS, "the checkpoint is damaged")
    sums = fields.get(KIND) if isinstance(fields, dict) else None
    if not isinstance(sums, dict):
        return f"its {SUMS} is not a checksum file"
    for name, wanted in sorted(sums.items())[place::num_places]:
        # Nothing outside of the folder is read, whatever stands there.
        path = folder / Path(name).name
        try:
            found = _sum_of(path)
        except OSError as error:
            return f"its {path.name} cannot be read: {error.strerror or error}"
        if found != wanted:
            return f"its {path.name} differs from what was saved"
    return ""


def hexadecimal(checksum: int) -> str:
    """A checksum as it is written down."""
    return f"{checksum:08x}"


def _sum_of(path: Path) -> str:
    checksum = 0
    with path.open("rb") as stream:
        while data := stream.read(CHUNK_BYTES):
            checksum = zlib.crc32(data, checksum)
    return hexadecimal(checksum)
