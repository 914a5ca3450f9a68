"""Data of a user's own: a function that gives the samples of a step, or arrays of inputs and targets in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from profiles.errors import InputError
from profiles.models.profile import WorkloadSpec
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.task import Sample, Task, stack
from profiles.workloads.trust import check_trusted, is_factory
from profiles.workloads.user_module import import_factory

Batches = Callable[[int, int], list[Any]]
WAYS = "give --data FILE.npz with arrays `inputs` and `targets`, or --data package.module:batches"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSamples:
    """What a task is trained on; the seed is that of the weights, since a task's samples depend on the step alone."""

    task: Task
    spec: WorkloadSpec
    seed: int

    def batch(self, step: int, num_samples: int) -> tuple[list[Sample]]:
        """The samples of one step."""
        return (_drawn(self.spec, self.task.batches, step, num_samples),)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPairs:
    """Inputs and targets that a function of the user's gives, for a module that takes one tensor."""

    batches: Batches
    spec: WorkloadSpec
    seed: int

    def batch(self, step: int, num_samples: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step. Shapes: (num_samples, ...) both."""
        drawn = _drawn(self.spec, self.batches, step, num_samples)
        pairs = [tuple(sample.values()) if isinstance(sample, dict) else tuple(sample) for sample in drawn]
        if any(len(pair) != 2 for pair in pairs):
            raise InputError(f"{self.spec.title}: a sample is a pair of an input and a target")
        whole = stack(
            [{"inputs": torch.as_tensor(given), "targets": torch.as_tensor(wanted)} for given, wanted in pairs]
        )
        if not all(isinstance(value, Tensor) for value in whole.values()):
            raise InputError(f"{self.spec.title}: inputs must be of one shape, and targets too")
        return whole["inputs"], whole["targets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """Inputs and targets in memory. Shapes: (sample, ...) both."""

    inputs: Tensor
    targets: Tensor
    seed: int

    def batch(self, step: int, num_samples: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step. Shapes: (num_samples, ...) both."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        chosen = torch.randint(0, len(self.targets), (num_samples,), generator=generator)
        return self.inputs[chosen], self.targets[chosen]


def _drawn(spec: WorkloadSpec, batches: Batches, step: int, num_samples: int) -> list[Any]:
    with foreign_code(spec, f"{spec.title}: its batches fail"):
        drawn = batches(step, num_samples)
        if not isinstance(drawn, list) or len(drawn) != num_samples:
            found = f"{len(drawn)} samples" if isinstance(drawn, list) else f"a {type(drawn).__name__}"
            raise InputError(
                f"{spec.title}: its batches(step, samples) gave {found}: it must give {num_samples} in a list"
            )
    return drawn


def given_data(data: str, task: Task) -> Task:
    """`task` on the data that a command line names as package.module:batches, with `collate` beside it if there is one.

    Raises: InputError where that cannot be imported.
    """
    if not data:
        return task
    batches, collate = _imported(data)
    return replace(task, batches=batches, collate=collate or task.collate)


def given_pairs(data: str, spec: WorkloadSpec, seed: int) -> GivenPairs:
    """Pairs that a command line names as package.module:batches.

    Raises: InputError where that cannot be imported.
    """
    return GivenPairs(batches=_imported(data)[0], spec=spec, seed=seed)


def _imported(data: str) -> tuple[Batches, Callable[[list[Any]], Any] | None]:
    if not is_factory(data):
        raise InputError(f"--data {data}: a task's samples cannot come from a file: give package.module:batches")
    spec = WorkloadSpec(kind="module", name="data", factory=data)
    check_trusted(spec, (spec.module,), "--data")
    with foreign_code(spec, f"cannot import {data}"):
        batches: Any = import_factory(spec)
    return batches, getattr(sys.modules[spec.module], "collate", None)
