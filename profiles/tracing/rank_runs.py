"""A task's module as one tensor-parallel rank of several: what it holds, runs and sends, in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from profiles.models.operators import Phase
from profiles.tracing.segment_recorder import SegmentRecorder
from profiles.tracing.segments import Sent
from profiles.tracing.storages import size_of
from profiles.workloads.split_ranks import Ranks, run_as_rank, split_dims, taken
from profiles.workloads.tensor_splits import Pieces, Split


class OneRank(Ranks):
    """The first rank, which holds its part of what is split; notes what it would send."""

    def __init__(self) -> None:
        super().__init__(0)
        self.recorder: SegmentRecorder | None = None
        self.sent: list[Sent] = []

    def entered(self, path: str, value: Tensor) -> Tensor:
        """The value, whose gradients are summed where it has some."""
        if value.requires_grad:
            self.note("backward", size_of(value))
        return value

    def added(self, path: str, value: Tensor, bias: Tensor | None) -> Tensor:
        """A value of the size of the sum over ranks."""
        self.note("forward", size_of(value))
        return value.clone() if bias is None else value + bias

    def part(self, parameter: Tensor, dim: int, pieces: Pieces) -> Tensor:
        """The parameter, which is this rank's part already."""
        return parameter

    def note(self, phase: Phase, num_bytes: int) -> None:
        """Note a message of the segment that runs."""
        assert self.recorder is not None
        self.sent.append((self.recorder.segment, phase, num_bytes))


@contextmanager
def as_rank(module: nn.Module, split: Split | None, rank: OneRank, fake: Any) -> Iterator[None]:
    """While entered, a module holds and runs what a rank of a split does; `fake` is the mode of its tensors, if any."""
    with ExitStack() as undo:
        if split is not None:
            with contextlib.nullcontext() if fake is None else fake:
                for path, style in split.styles.items():
                    part, pieces = module.get_submodule(path), split.pieces[path][rank.rank]
                    for name, dim in split_dims(part, style, path in split.transposed).items():
                        hold(undo, part, name, taken(getattr(part, name).detach(), dim, pieces))
            undo.enter_context(run_as_rank(module, split, rank))
        yield


def hold(undo: ExitStack, part: nn.Module, name: str, value: Tensor) -> None:
    """Let a module hold what a rank has of a parameter, until that is undone."""
    whole: nn.Parameter = getattr(part, name)
    own = nn.Parameter(value.clone(), requires_grad=whole.requires_grad)
    part.register_parameter(name, own)
    undo.callback(part.register_parameter, name, whole)
