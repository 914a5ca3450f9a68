"""Tokens on disk as windows of a sequence's length, read by memory map, or packed from the rows of a dataset."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from executor.train.settings import DataSettings
from profiles.errors import EnvironmentFailure, InputError

# Windows whose tokens are held against the vocabulary before the first step.
NUM_LOOKED_AT = 64
# Rows whose lengths are counted together.
ROWS_AT_ONCE = 100_000


class Stream(Protocol):
    """Tokens one behind the other."""

    def __len__(self) -> int:
        """How many."""

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Those from `start` to before `stop`."""


@dataclass(frozen=True, slots=True)
class FileTokens:
    """Tokens of a file, or in memory; of a file only what is read is loaded."""

    tokens: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Those from `start` to before `stop`."""
        return self.tokens[start:stop]


@dataclass(frozen=True, slots=True)
class RowTokens:
    """Rows of a dataset laid end to end, `end_of_text` behind each; `ends` is where they end. Shape: (row,)."""

    rows: Any
    column: str
    ends: np.ndarray[Any, Any]
    end_of_text: int | None

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Those from `start` to before `stop`."""
        first, last = (int(np.searchsorted(self.ends, place, side="right")) for place in (start, stop - 1))
        behind = [] if self.end_of_text is None else [self.end_of_text]
        parts = [
            np.array([*(self.rows[row][self.column] or ()), *behind], dtype=np.int64) for row in range(first, last + 1)
        ]
        begin = start - (int(self.ends[first - 1]) if first else 0)
        return np.concatenate(parts)[begin : begin + stop - start]


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of a stream, from window `first` on: each of `length` tokens and the one behind it, none overlapping."""

    stream: Stream
    length: int
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Inputs and next tokens. Shapes: both (window, length)."""
        starts = [(self.first + index) * self.length for index in indices]
        read = [np.asarray(self.stream.read(start, start + self.length + 1), dtype=np.int64) for start in starts]
        windows = torch.from_numpy(np.stack(read))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def split(self, share: float) -> tuple[Windows, Windows]:
        """All but the last `share` of the windows, and those."""
        held = round(self.count * share)
        kept = self.count - held
        return (
            Windows(self.stream, self.length, self.first, kept),
            Windows(self.stream, self.length, self.first + kept, held),
        )


def token_windows(name: str, settings: DataSettings, length: int, vocab_size: int) -> Windows:
    """The windows of a file of tokens, or of a folder that Hugging Face's `save_to_disk` wrote.

    Raises: InputError where it cannot be read, is too short, or has tokens that the model has not; EnvironmentFailure
    where `datasets` is not installed.
    """
    path = Path(name)
    stream: Stream = _rows(path, settings) if path.is_dir() else FileTokens(_mapped(path, settings))
    if (count := (len(stream) - 1) // length) < 1:
        raise InputError(f"{name} has {len(stream)} tokens: a sample of {length} needs {length + 1}")
    windows = Windows(stream, length, 0, count)
    step = max(1, count // NUM_LOOKED_AT)
    inputs, targets = windows.batch(list(range(0, count, step)))
    low, high = int(min(inputs.min(), targets.min())), int(max(inputs.max(), targets.max()))
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise InputError(
            f"{name} has token {wrong}, the model has tokens 0 to {vocab_size - 1}: is it from another tokenizer, "
            f"or not of token_type = {settings.token_type!r}?"
        )
    return windows


def _mapped(path: Path, settings: DataSettings) -> np.ndarray[Any, Any]:
    try:
        if path.suffix == ".npy":
            found: np.ndarray[Any, Any] = open_memmap(path, mode="r")
            if found.ndim != 1 or found.dtype.kind not in "iu":
                raise InputError(
                    f"{path} holds {found.dtype} of shape {found.shape}: tokens are whole numbers in a row"
                )
            return found
        size, of_one = path.stat().st_size, np.dtype(settings.token_type).itemsize
        if not size or size % of_one:
            raise InputError(f"{path} has {size} bytes: tokens of {settings.token_type} have {of_one} each")
        return np.memmap(path, dtype=settings.token_type, mode="r")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read the tokens of {path}: {getattr(error, 'strerror', None) or error}") from error


def _rows(path: Path, settings: DataSettings) -> RowTokens:
    rows, column = load_rows(path), settings.column
    if column not in rows.column_names:
        raise InputError(f"{path} has the columns {', '.join(rows.column_names)}: say which holds tokens, column = ...")
    extra = settings.end_of_text is not None
    return RowTokens(rows, column, np.cumsum(_lengths(path, rows, column) + extra), settings.end_of_text)


def _lengths(path: Path, rows: Any, column: str) -> np.ndarray[Any, Any]:
    """Tokens of each row, counted by arrow: rows may be more than Python counts in reasonable time.

    Raises: InputError where the column holds no lists.
    """
    import pyarrow
    from pyarrow import compute

    # A choice of rows, or their order, may stand beside the table; with_format("arrow") applies it.
    counts = []
    for table in rows.select_columns([column]).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        try:
            counted = compute.fill_null(compute.list_value_length(table[column]), 0)
        except pyarrow.ArrowException as error:
            raise InputError(f"{path}: its column {column} holds {table[column].type}, not lists of tokens") from error
        counts.append(counted.to_numpy().astype(np.int64))
    return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)


def load_rows(path: Path) -> Any:
    """A dataset that Hugging Face's `save_to_disk` wrote; of one with several splits, the one for training.

    Raises: EnvironmentFailure where `datasets` is not installed; InputError where the folder is none.
    """
    if importlib.util.find_spec("datasets") is None:
        raise EnvironmentFailure(f"{path} is read with Hugging Face's datasets: pip install 'trainwright[datasets]'")
    from datasets import load_from_disk

    try:
        found = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a dataset of save_to_disk: {str(error).splitlines()[0]:.100}") from error
    if not hasattr(found, "column_names") or isinstance(found.column_names, dict):
        if "train" not in found:
            raise InputError(f"{path} has the splits {', '.join(found)}, none called train: give the folder of one")
        found = found["train"]
    return found
