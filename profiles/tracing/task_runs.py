"""Runs a task's module at several sizes with its kernels noted: under fake tensors, else with real ones."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.random import fork_rng
from torch.utils._pytree import tree_map

from profiles.errors import InputError
from profiles.models.profile import WorkloadSpec
from profiles.tracing import cuts
from profiles.tracing.atoms import atoms_of, watching
from profiles.tracing.dropout import Dropout
from profiles.tracing.expert_runs import as_sharer
from profiles.tracing.fake_results import KnownResults
from profiles.tracing.known_values import KnownValues, NumbersOf
from profiles.tracing.module_copies import (
    fake_like,
    replace_tensors,
    shorten,
    with_weights,
    without_weights,
)
from profiles.tracing.rank_runs import OneRank, as_rank
from profiles.tracing.segment_recorder import SegmentRecorder
from profiles.tracing.segments import Run, cut
from profiles.workloads.experts import narrow_experts
from profiles.workloads.fake_tensors import FakeTensorMode, matched_in_order, seen_as_real, told_by_the_error
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.precision import autocast
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.task import Batch, Task
from profiles.workloads.tensor_splits import Split

# What is left of lists of equal blocks: the first few; those, the last and as many in between as show that what is
# taken out is like them; or all.
Left: TypeAlias = Literal["first", "ends", "all"]
FIRST: Left = "first"
ENDS: Left = "ends"
ALL: Left = "all"
# Parameters that a module may have that is run with real weights: 8 GB of them.
MOST_REAL = 2_000_000_000
SEED = 1


class TooLarge(InputError):
    """A module is not run with real weights, of which it has too many."""


@dataclass(slots=True, kw_only=True)
class Subject:
    """A module that can be run: with fake or real tensors, whole or with blocks taken out.

    `num_parameters` are those of the whole module; `fake` is the mode of its tensors, None where they are real;
    `dropout` is that of a kind of device, `blocks` are the paths of its repeated blocks, `taken` what was taken out,
    `left` what was not; `results` are those of kernels on fake tensors.
    """

    spec: WorkloadSpec
    task: Task
    module: nn.Module
    blocks: tuple[str, ...]
    taken: dict[str, list[str]]
    num_parameters: int
    left: Left = ALL
    fake: Any = None
    dropout: Dropout = field(default_factory=lambda: Dropout(fused=False))
    results: KnownResults | None = None
    runs: dict[tuple[str, int, int, int, int], Run] = field(default_factory=dict)

    @property
    def is_real(self) -> bool:
        """Whether its tensors have values."""
        return self.fake is None

    def run(self, precision: str, samples: int, size: int, split: Split | None = None, shares: int = 1) -> Run:
        """One forward and backward pass of a batch, cut at the blocks; each is run once.

        As the first rank of a split, or of those that share experts.

        Raises: InputError where the module or its loss fails.
        """
        key = precision, samples, size, split.degree if split else 1, shares
        if key not in self.runs:
            rank = OneRank()
            with as_rank(self.module, split, rank, self.fake), as_sharer(self.module, shares, rank, self.fake):
                with foreign_code(self.spec, f"{self.spec.title}: its module or its loss does not run"):
                    recorder, walk = self._recorded(self.task.example(samples, size), precision, rank)
                # Out here, for a mistake in it is none of the module's.
                between = self.taken if self.left == ENDS else {}
                self.runs[key] = cut(recorder, self.module, walk.finish(), rank.sent, between)
        return self.runs[key]

    def _recorded(self, batch: Batch, precision: str, rank: OneRank) -> tuple[SegmentRecorder, cuts.Recording]:
        if self.fake is None:
            with fork_rng(devices=[]):
                torch.manual_seed(SEED)
                return self._passed(batch, precision, None, rank)
        self.results = self.results or KnownResults(self.fake)
        known = KnownValues(self.fake, self.results)
        fake = tree_map(functools.partial(self._faked, known), batch)
        with self.fake, seen_as_real(), matched_in_order(), told_by_the_error(), fork_rng(devices=[]), NumbersOf(known):
            return self._passed(fake, precision, known, rank)

    def _faked(self, known: KnownValues, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        fake = self.fake.from_tensor(leaf)
        known.tell(fake, leaf)
        return fake

    def _passed(
        self, batch: Batch, precision: str, known: KnownValues | None, rank: OneRank
    ) -> tuple[SegmentRecorder, cuts.Recording]:
        self.module.zero_grad(set_to_none=True)
        products = "tf32" if precision == "tf32" else "fp32"
        blocks = {path: self.module.get_submodule(path) for path in self.blocks}
        recorder = SegmentRecorder(self.module, blocks, products, known)
        rank.recorder = recorder
        walk = cuts.Recording(atoms_of(self.module, blocks), blocks)
        with recorder.watch():
            with autocast(precision, "cpu"), self.dropout, watching(walk.atoms, walk):
                loss = self.task.loss(self.module, batch)
            recorder.backward(loss)
        self.module.zero_grad(set_to_none=True)
        return recorder, walk


def subjects(spec: WorkloadSpec, task: Task) -> Iterator[Callable[[], Subject]]:
    """What can be run, the quickest first; each is built when it is called, and may fail with an InputError."""
    for make in (_fake, _real):
        for left in (FIRST, ENDS, ALL):
            yield functools.partial(_built, make, spec, task, left)


def whole_of(subject: Subject) -> Subject:
    """The same module with nothing taken out."""
    return _built(_real if subject.is_real else _fake, subject.spec, subject.task, ALL)


def real_of(subject: Subject) -> Subject:
    """The same module, of which as much was taken out, with weights."""
    return _built(_real, subject.spec, subject.task, subject.left)


def narrow_of(spec: WorkloadSpec, task: Task, left: Left) -> Subject:
    """A module that is given its weights when as much was taken out, its experts being narrow ones."""
    return _built(functools.partial(_real, prepare=narrow_experts), spec, task, left)


def is_remade(spec: WorkloadSpec) -> bool:
    """Whether a module is given its weights when blocks of it were taken out, rather than where it is built."""
    return spec.kind == "transformers" and not spec.weights


def _built(make: Callable[[WorkloadSpec, Task, Left], Subject], spec: WorkloadSpec, task: Task, left: Left) -> Subject:
    with foreign_code(spec, f"{spec.title}: its module cannot be built"), fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return make(spec, task, left)


def _fake(spec: WorkloadSpec, task: Task, left: Left) -> Subject:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with without_weights():
        module = task.build()
    count, (blocks, taken) = _trained(module), _blocks(module, left)
    with fake:
        replace_tensors(module, fake_like)
    return Subject(
        spec=spec, task=task, module=module, blocks=blocks, taken=taken, num_parameters=count, left=left, fake=fake
    )


def _real(
    spec: WorkloadSpec, task: Task, left: Left, prepare: Callable[[nn.Module], None] = lambda module: None
) -> Subject:
    with without_weights() if is_remade(spec) else contextlib.nullcontext():
        module = task.build()
    count, (blocks, taken) = _trained(module), _blocks(module, left)
    prepare(module)
    held = sum(parameter.numel() for parameter in module.parameters())
    if held > MOST_REAL:
        raise TooLarge(
            f"{spec.title}: it cannot be traced without values, and with values "
            f"{held / 1e9:.1f} billion parameters of a few blocks are too many: give a configuration of smaller blocks"
        )
    module = with_weights(module) if is_remade(spec) else module
    return Subject(spec=spec, task=task, module=module, blocks=blocks, taken=taken, num_parameters=count, left=left)


def _blocks(module: nn.Module, left: Left) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """The repeated blocks of a module that are left in it, and what was taken out."""
    # Found before: of stages with few blocks left, others would be.
    found = repeated_blocks(module)
    taken = shorten(module, keeps_ends=left == ENDS) if left != ALL else {}
    paths = {path for path, _ in module.named_modules()}
    return tuple(path for path in found if path in paths), taken


def _trained(module: nn.Module) -> int:
    """Parameters of a module that is made ready for training."""
    module.train()
    return sum(parameter.numel() for parameter in module.parameters())
