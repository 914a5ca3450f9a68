"""What a training reads, step by step: of each global batch the share of one replica, on any number of replicas."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from executor.run.batches import Data, Images, Text, load_data
from executor.run.own_data import Arrays, TaskSamples, given_data
from executor.train.order import sample_at
from executor.train.settings import DataSettings
from executor.train.tokens import FileTokens, Windows, load_rows, token_windows
from profiles.errors import InputError, TrainwrightError
from profiles.ranks.rank import unpinned
from profiles.workloads.hf_task import read_transformers_config
from profiles.workloads.task import Sample
from profiles.workloads.trust import is_factory
from profiles.workloads.workload import Workload

# What a task takes, or the inputs and targets of layers, which are cut along their first dimension.
Batch = tuple[Any, ...]
CAUSAL = "causal-lm"


class Counted(Protocol):
    """Samples that are counted, each read by its number."""

    def __len__(self) -> int:
        """How many."""

    def batch(self, indices: list[int]) -> Batch:
        """Those of some numbers."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Inputs and targets in memory. Shapes: both (sample, ...)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: list[int]) -> Batch:
        """Those of some numbers."""
        return self.inputs[indices], self.targets[indices]

    def split(self, share: float) -> tuple[Pairs, Pairs]:
        """All but the last `share`, and that."""
        kept = len(self) - round(len(self) * share)
        return Pairs(self.inputs[:kept], self.targets[:kept]), Pairs(self.inputs[kept:], self.targets[kept:])


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a Hugging Face dataset as samples of a task, from row `first` on."""

    rows: Any
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: list[int]) -> Batch:
        """Those of some numbers."""
        samples: list[Sample] = [self.rows[self.first + index] for index in indices]
        return (samples,)

    def split(self, share: float) -> tuple[Rows, Rows]:
        """All but the last `share`, and that."""
        held = round(self.count * share)
        kept = self.count - held
        return Rows(self.rows, self.first, kept), Rows(self.rows, self.first + kept, held)


@dataclass(frozen=True, slots=True)
class LabelledWindows:
    """Windows of tokens as samples of a task of transformers, which itself holds each token against the next."""

    windows: Windows

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: list[int]) -> Batch:
        """Those of some numbers."""
        inputs, _ = self.windows.batch(indices)
        return ([{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in inputs],)

    def split(self, share: float) -> tuple[LabelledWindows, LabelledWindows]:
        """All but the last `share`, and that."""
        kept, held = self.windows.split(share)
        return LabelledWindows(kept), LabelledWindows(held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The samples of a training: `of_step(step, first, count, size)` are `count` of a step's `size`, from `first` on.

    `num_samples` are those of an epoch, 0 where nobody counts them.
    """

    of_step: Callable[[int, int, int, int], Batch]
    num_samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which part of every global batch of `size` a replica reads: `count` samples from the `first` on."""

    size: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class OfReplica(Dataset[Batch]):
    """A replica's share of every step: which samples these are depends on the step alone."""

    source: Source
    share: Share

    def __getitem__(self, step: int) -> Batch:
        share = self.share
        first = share.first + (step * share.size if self.source.num_samples else 0)
        return self.source.of_step(step, first, share.count, share.size)


def read_ahead(samples: OfReplica, steps: Sequence[int], workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches of some steps in order, read ahead by `workers` processes, or when they are asked for.

    Raises: what reading raises.
    """
    loader: DataLoader[Any] = DataLoader(
        _Worded(samples),
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        collate_fn=_as_it_is,
        worker_init_fn=_leave_the_end_to_the_rank,
        # Sources are functions, which other ways of starting cannot send.
        multiprocessing_context="fork" if workers else None,
    )
    # Workers would inherit the one core that this thread computes on.
    with unpinned():
        read = iter(loader)
    return _raised(read)


@dataclass(frozen=True, slots=True)
class _Worded(Dataset[Any]):
    """Samples, or the error that reading them ended in: raised in a worker, it would lose its sentence."""

    samples: OfReplica

    def __getitem__(self, step: int) -> Batch | TrainwrightError:
        try:
            return self.samples[step]
        except TrainwrightError as error:
            return error


def _raised(read: Iterator[Any]) -> Iterator[Batch]:
    for batch in read:
        if isinstance(batch, TrainwrightError):
            raise batch
        yield batch


def _leave_the_end_to_the_rank(_: int) -> None:
    """Outlast one SIGTERM, which Slurm sends to all processes of a job: a rank that saves still takes a step or two.

    A second one ends the worker, so that nobody waits for it in vain.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _as_it_is(batch: Any) -> Any:
    return batch


def sources_of(
    settings: DataSettings, workload: Workload, length: int, seed: int, num_steps: int
) -> tuple[Source, Source | None]:
    """What is trained on, and what is evaluated on, where anything is left for that.

    Samples that are drawn by the step are evaluated at steps that no training of `num_steps` comes to.
    Raises: InputError, EnvironmentFailure.
    """
    given = _found(settings.train, settings, workload, length, seed)
    if isinstance(given, Source):
        if settings.held_out:
            raise InputError("[data] held_out needs countable samples: give evaluation = package.module:batches")
        other = _found(settings.evaluation, settings, workload, length, seed) if settings.evaluation else given
        return given, _in_order(other) if not isinstance(other, Source) else _after(other, num_steps)
    held: Any = None
    if settings.evaluation:
        held = _found(settings.evaluation, settings, workload, length, seed)
    elif settings.held_out:
        given, held = given.split(settings.held_out)
        if not len(given) or not len(held):
            raise InputError(f"[data] held_out = {settings.held_out:g} leaves no sample to train on or to evaluate on")
    shuffled = _shuffled(given, seed, settings.shuffle)
    if held is None:
        return shuffled, None
    return shuffled, _after(held, num_steps) if isinstance(held, Source) else _in_order(held)


def is_tokens(name: str, workload: Workload) -> bool:
    """Whether a name of [data] is a file of tokens, or a folder of them."""
    path = Path(name)
    reads_tokens = not workload.answers_once if workload.task is None else workload.spec.task == CAUSAL
    return (
        bool(name) and reads_tokens and (path.suffix in (".bin", ".npy") or (workload.task is None and path.is_dir()))
    )


def _found(name: str, settings: DataSettings, workload: Workload, length: int, seed: int) -> Any:
    """What a name of [data] stands for: counted samples, or a source that draws them by the step."""
    if is_tokens(name, workload):
        if workload.task is None:
            return token_windows(name, settings, length, workload.vocab_size)
        vocabulary = read_transformers_config(workload.spec).get_text_config().vocab_size
        return LabelledWindows(token_windows(name, settings, length, vocabulary))
    if workload.task is not None and name and Path(name).is_dir():
        rows = load_rows(Path(name)).with_format("torch")
        return Rows(rows, 0, len(rows))
    if workload.task is not None:
        if name and not is_factory(name):
            raise InputError(
                f"{name}: the task {workload.task.name} reads a folder that save_to_disk wrote, or "
                "package.module:batches" + (", or tokens as .bin or .npy" if workload.spec.task == CAUSAL else "")
            )
        task = given_data(name, workload.task)
        return _drawn(TaskSamples(task=task, spec=workload.spec, seed=seed))
    data = load_data(name, workload, length, seed)
    if isinstance(data, Text):
        return Windows(FileTokens(data.data.numpy()), length, 0, (len(data.data) - 1) // length)
    if isinstance(data, Images):
        return Pairs(data.patches, data.labels)
    if isinstance(data, Arrays):
        return Pairs(data.inputs, data.targets)
    return _drawn(data)


def _shuffled(samples: Counted, seed: int, shuffle: bool) -> Source:
    def of_step(_: int, first: int, count: int, size: int) -> Batch:
        numbers = range(first, first + count)
        return samples.batch([sample_at(number, len(samples), seed, shuffle=shuffle) for number in numbers])

    return Source(of_step=of_step, num_samples=len(samples))


def _in_order(samples: Counted) -> Source:
    return _shuffled(samples, 0, shuffle=False)


def _drawn(data: Data) -> Source:
    def of_step(step: int, first: int, count: int, size: int) -> Batch:
        return tuple(own[first : first + count] for own in data.batch(step, size))

    return Source(of_step=of_step)


def _after(source: Source, num_steps: int) -> Source:
    """A source from the step on that comes behind the last."""
    return replace(source, of_step=lambda step, *share: source.of_step(num_steps + step, *share))
