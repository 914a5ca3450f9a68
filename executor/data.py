"""Training data: bytes of a text as tokens; the global batch of a step depends on the seed and the step alone."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from profiles.errors import InputError

# Text that every Python has, largest first: the topics of its help, and a module of its library.
DEFAULT_MODULES = ("pydoc_data.topics", "argparse")


def default_text() -> Path:
    """A text of some hundred kilobytes that comes with Python.

    Raises: InputError where this Python has no such file.
    """
    for name in DEFAULT_MODULES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            return Path(spec.origin)
    raise InputError("this Python has no library text to train on: give --data FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text in memory as bytes, and how samples are drawn from it."""

    data: Tensor
    sequence_length: int
    seed: int

    def batch(self, step: int, num_samples: int) -> tuple[Tensor, Tensor]:
        """Inputs and next-byte targets of one step. Shapes: both (num_samples, sequence_length)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        starts = torch.randint(0, len(self.data) - self.sequence_length, (num_samples,), generator=generator)
        windows = self.data[starts[:, None] + torch.arange(self.sequence_length + 1)].long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def split_off(text: Text, share: float) -> tuple[Text, Text]:
    """A text without its last `share`, and that share, which no sample of the first reaches into.

    Raises: InputError where either is too short for a sample.
    """
    cut = int(len(text.data) * (1 - share))
    parts = (text.data[:cut], text.data[cut:])
    if min(len(part) for part in parts) <= text.sequence_length + 1:
        raise InputError(
            f"a text of {len(text.data)} bytes is too short to hold {share:.0%} of it out in samples of "
            f"{text.sequence_length} tokens: give a longer one with --data"
        )
    first, last = (replace(text, data=part) for part in parts)
    return first, last


def load_text(path: Path, sequence_length: int, seed: int) -> Text:
    """Read a file as bytes.

    Raises: InputError where the file cannot be read or is shorter than one sample.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the data {path}: {error.strerror}") from error
    if len(content) <= sequence_length + 1:
        raise InputError(
            f"{path} has {len(content)} bytes: a sample of {sequence_length} tokens needs {sequence_length + 2}"
        )
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return Text(data=data, sequence_length=sequence_length, seed=seed)
