"""Training data: bytes of a text as tokens, or labelled images as patches.

The global batch of a step depends on the seed and the step alone.
"""

from __future__ import annotations

import importlib.util
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from executor.run.own_data import Arrays, GivenPairs, TaskSamples, given_pairs
from profiles.errors import EnvironmentFailure, InputError
from profiles.workloads.trust import is_factory
from profiles.workloads.vision import patches_of
from profiles.workloads.workload import Workload

# Text that every Python has, largest first: the topics of its help, and a module of its library.
DEFAULT_MODULES = ("pydoc_data.topics", "argparse")
HELD_OUT_SAMPLES = 64
# Grey levels of scikit-learn's digits.
DIGIT_LEVELS = 16.0


def default_text() -> Path:
    """A text of some hundred kilobytes that comes with Python.

    Raises: InputError where this Python has no such file.
    """
    for name in DEFAULT_MODULES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            return Path(spec.origin)
    raise InputError("this Python has no help text to train on: give --data FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text in memory as bytes, and how samples are drawn from it."""

    data: Tensor
    sequence_length: int
    seed: int

    def batch(self, step: int, num_samples: int) -> tuple[Tensor, Tensor]:
        """Inputs and next-byte targets of one step. Shapes: both (num_samples, sequence_length)."""
        generator = _generator(self.seed, step)
        starts = torch.randint(0, len(self.data) - self.sequence_length, (num_samples,), generator=generator)
        windows = self.data[starts[:, None] + torch.arange(self.sequence_length + 1)].long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """What a model is judged on, where this is what was held out."""
        return self.batch(0, HELD_OUT_SAMPLES)

    def split_off(self, share: float) -> tuple[Text, Text]:
        """The text without its last `share`, and that share, which no sample of the first reaches into.

        Raises: InputError where either is too short for a sample.
        """
        cut = int(len(self.data) * (1 - share))
        parts = (self.data[:cut], self.data[cut:])
        if min(len(part) for part in parts) <= self.sequence_length + 1:
            raise InputError(
                f"a text of {len(self.data)} bytes is too short to hold out {share:.0%} of it in samples of "
                f"{self.sequence_length} tokens: give a longer one with --data"
            )
        first, last = (replace(self, data=part) for part in parts)
        return first, last


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Labelled images in memory. Shapes: patches (image, 1 + patch, pixel), labels (image,)."""

    patches: Tensor
    labels: Tensor
    seed: int

    def batch(self, step: int, num_samples: int) -> tuple[Tensor, Tensor]:
        """Patches and labels of one step. Shapes: (num_samples, 1 + patch, pixel), (num_samples,)."""
        generator = _generator(self.seed, step)
        chosen = torch.randint(0, len(self.labels), (num_samples,), generator=generator)
        return self.patches[chosen], self.labels[chosen]

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """What a model is judged on, where this is what was held out: all of it."""
        return self.patches, self.labels

    def split_off(self, share: float) -> tuple[Images, Images]:
        """The images without the last `share` of them, and those."""
        cut = int(len(self.labels) * (1 - share))
        first, last = (
            replace(self, patches=self.patches[part], labels=self.labels[part])
            for part in (slice(None, cut), slice(cut, None))
        )
        return first, last


Samples = Text | Images
Data = Samples | TaskSamples | GivenPairs | Arrays


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def load_data(data: str, workload: Workload, sequence_length: int, seed: int) -> Data:
    """What the workload is trained on: of a user's own, or what comes with Python or scikit-learn.

    Raises: InputError where the data does not suit the workload; EnvironmentFailure where scikit-learn is missing.
    """
    if workload.task is not None:
        return TaskSamples(task=workload.task, spec=workload.spec, seed=seed)
    if is_factory(data):
        return given_pairs(data, workload.spec, seed)
    if workload.spec.kind == "module" and data.endswith(".npz"):
        inputs, targets = _arrays(Path(data), "inputs", "targets")
        if not len(inputs) or len(inputs) != len(targets):
            raise InputError(f"{data}: {len(inputs)} inputs and {len(targets)} targets: there must be one for each")
        return Arrays(inputs=inputs, targets=targets, seed=seed)
    return load_samples(data, workload, sequence_length, seed)


def load_samples(data_file: str, workload: Workload, sequence_length: int, seed: int) -> Samples:
    """Text or images of a file that the workload is trained on; without one, what comes with Python or scikit-learn.

    Raises: InputError where the file does not suit the workload; EnvironmentFailure where scikit-learn is missing.
    """
    if not workload.answers_once:
        return load_text(Path(data_file) if data_file else default_text(), sequence_length, seed)
    return load_images(data_file, workload, seed)


def data_name(data_file: str, workload: Workload) -> str:
    """What the data is called in files and tables."""
    if data_file:
        return data_file
    if workload.task is not None:
        return f"samples of {workload.task.name}"
    if workload.answers_once:
        return "scikit-learn's handwritten digits"
    path = default_text()
    return f"Python's {path.parent.name}/{path.name}"


def load_images(data_file: str, workload: Workload, seed: int) -> Images:
    """Images and labels of an .npz file (`images`, from 0 to 1, and `labels`), or the digits that scikit-learn has.

    Shapes: images (image, height, width) or (image, channel, height, width), labels (image,).
    Raises: InputError, EnvironmentFailure.
    """
    images, labels = _digits() if not data_file else _arrays(Path(data_file), "images", "labels")
    config = workload.spec.config
    wanted = (int(config["num_channels"]), int(config["image_size"]), int(config["image_size"]))
    if images.dim() == 3:
        images = images[:, None]
    if tuple(images.shape[1:]) != wanted or len(images) != len(labels):
        raise InputError(
            f"{data_file or 'the digits'}: {len(labels)} labels and images of {tuple(images.shape)}, but "
            f"{workload.spec.name} reads (channels, height, width) = {wanted}"
        )
    if not len(labels):
        raise InputError(f"{data_file}: it has no images: there is nothing to train on")
    if labels.is_floating_point() or not bool(torch.isfinite(images).all()):
        raise InputError(f"{data_file}: images must be finite numbers, and labels whole numbers")
    if int(labels.min()) < 0 or int(labels.max()) >= workload.vocab_size:
        raise InputError(
            f"{data_file or 'the digits'}: labels from {int(labels.min())} to {int(labels.max())}, but "
            f"{workload.spec.name} has {workload.vocab_size}, from 0"
        )
    return Images(patches=patches_of(images.float(), int(config["patch_size"])), labels=labels.long(), seed=seed)


def _digits() -> tuple[Tensor, Tensor]:
    if importlib.util.find_spec("sklearn") is None:
        raise EnvironmentFailure(
            "images to train on come from scikit-learn: pip install 'trainwright[digits]', or give --data FILE.npz"
        )
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.from_numpy(found.images) / DIGIT_LEVELS, torch.from_numpy(found.target)


def _arrays(path: Path, first: str, second: str) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as found:
            return torch.from_numpy(found[first]), torch.from_numpy(found[second])
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {path} as .npz with {first} and {second}: {words:.100}") from error


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
