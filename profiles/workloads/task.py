"""A task: a module as its author wrote it, the batches that it learns from, and its loss.

A batch is a dict whose items are the arguments of the module's forward, labels among them. A sample is one entry of it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from profiles.errors import InputError

Sample: TypeAlias = dict[str, Any]
Batch: TypeAlias = dict[str, Any]
# What a sample's size counts: tokens of text, pixels of an image's side, values of a signal; "" where it has one alone.
Unit = Literal["tokens", "pixels", "values", ""]
# Apart from every seed that steps are given.
SEED_OF_EXAMPLES = 7


def module_loss(module: nn.Module, batch: Batch) -> Tensor:
    """The loss that a module computes by itself: alone, or as `loss`, or first, of what it returns.

    Raises: InputError where it returns none.
    """
    output = module(**batch)
    loss = output
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif hasattr(output, "loss"):
        loss = output.loss
    elif isinstance(output, tuple | list) and output:
        loss = output[0]
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError(
            f"{type(module).__name__} gave no loss for a batch of {', '.join(batch)}: "
            "its forward must return one scalar, as `loss` or first, or the task must have a loss(module, batch)"
        )
    return loss.reshape(())


def stack(samples: Sequence[Sample]) -> Batch:
    """One batch: equal tensors stacked, anything else in lists."""
    batch: Batch = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        alike = all(isinstance(value, Tensor) and value.shape == values[0].shape for value in values)
        batch[name] = torch.stack(values) if alike else values
    return batch


def samples_of(batch: Batch) -> list[Sample]:
    """The samples of a batch, whose values must be tensors or lists with one entry for each."""
    count = len(next(iter(batch.values())))
    return [{name: value[index] for name, value in batch.items()} for index in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained on what.

    `build()` makes the module, its weights as its own code leaves them after torch.manual_seed. `example(samples,
    size)` is a batch of that many samples with labels, for tracing; `batches(step, samples)` are the samples of a
    training step, equal wherever it is called; `collate` makes a batch of some; `loss` is a scalar, and what is
    trained. `size` is that of the samples of `batches`: a multiple of `size_step`, at least `least_size`, at most
    `longest_size` unless that is 0. Under `executor.apply`, which has no plain loop beside it, `build` may leave the
    module on the meta device: its weights are those of the folder `weights`, or new ones. Where `build`
    reads that folder, `skeleton` is the same without weights, on the meta device.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int, int], Batch]
    batches: Callable[[int, int], list[Sample]]
    collate: Callable[[list[Sample]], Batch] = stack
    loss: Callable[[nn.Module, Batch], Tensor] = module_loss
    unit: Unit = ""
    size: int = 0
    size_step: int = 1
    least_size: int = 0
    longest_size: int = 0
    weights: str = ""
    skeleton: Callable[[], nn.Module] | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether samples have one size alone."""
        return not self.unit or 0 < self.longest_size <= self.least_size


def seeded(step: int, position: int) -> torch.Generator:
    """Random numbers of their own for one sample of one step."""
    return torch.Generator().manual_seed((SEED_OF_EXAMPLES * 1_000_003 + step) * 1_000_003 + position)


def user_task(
    module: nn.Module | Callable[[], nn.Module],
    batches: Callable[[int, int], list[Sample]],
    collate: Callable[[list[Sample]], Batch] = stack,
    loss: Callable[[nn.Module, Batch], Tensor] = module_loss,
    *,
    name: str = "",
) -> Task:
    """A task of a user's own: what is trained, on what, by which loss.

    * `module`: what is trained, or what builds it; a module is copied, so that every plan starts from the same weights.
    * `batches`: `batches(step, count)`, a list of that many samples of a step, each what `collate` takes one of.
    * `collate`: `collate(samples)`, a batch of them; by default their tensors stacked, name by name.
    * `loss`: `loss(module, batch)`, a scalar; by default what the module returns as `loss`, or first.
    * `name`: what the task is called; by default as the module's class.
    """
    drawn = functools.partial(_drawn, batches, collate is stack)
    build = functools.partial(copy.deepcopy, module) if isinstance(module, nn.Module) else module
    named = type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__name__", "")
    return Task(
        name=name or (named if named.isidentifier() else "module"),
        build=build,
        example=lambda samples, size: collate(drawn(0, samples)),
        batches=drawn,
        collate=collate,
        loss=loss,
    )


def _drawn(batches: Callable[[int, int], list[Sample]], are_dicts: bool, step: int, count: int) -> list[Sample]:
    """The samples of a step as a user's function gives them.

    Raises: InputError where these are no list of as many, or where one that is to be stacked is no dict.
    """
    samples = batches(step, count)
    found = ""
    if isinstance(samples, str | bytes) or not isinstance(samples, Sequence):
        found = _kind(samples)
    elif len(samples) != count:
        found = f"{len(samples)} of them where {count} were asked for"
    elif are_dicts:
        odd = [sample for sample in samples if not isinstance(sample, Mapping)]
        found = f"a list with {_kind(odd[0])} in it" if odd else ""
    if found:
        raise InputError(
            f"batches(step, count) must return a list of count samples (dicts), and returned {found}: "
            "give one dict for each sample, without a batch dimension; they are stacked afterwards"
        )
    return list(samples)


def _kind(value: object) -> str:
    """What a value is, with its article."""
    if isinstance(value, Mapping):
        of = " of tensors" if value and all(isinstance(part, Tensor) for part in value.values()) else ""
        return f"a dict{of}"
    return "nothing" if value is None else f"one {type(value).__name__}"
