"""A task's module as one of the ranks that share its experts: what it holds, computes, keeps and sends, in one process.

Ranks are taken to be alike, as routers are trained to make them: each sends to every other what it keeps for itself.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from profiles.models.operators import Phase
from profiles.tracing.rank_runs import OneRank, hold
from profiles.tracing.storages import size_of
from profiles.workloads.expert_shares import mixtures_of
from profiles.workloads.experts import Compute, expert_parameters, set_dispatch

# Bytes of a number of rows, which ranks tell each other for every expert.
INT64 = 8


@contextmanager
def as_sharer(module: nn.Module, degree: int, rank: OneRank, fake: Any) -> Iterator[None]:
    """While entered, a module holds and runs what one of `degree` ranks does; `fake` is the mode of its tensors."""
    if degree == 1:
        yield
        return
    with ExitStack() as undo:
        for path in mixtures_of(module):
            part = module.get_submodule(path)
            with contextlib.nullcontext() if fake is None else fake:
                for name, whole in expert_parameters(part).items():
                    hold(undo, part, name, whole.detach().chunk(degree)[rank.rank])
            set_dispatch(part, functools.partial(_travel, degree, rank))
            undo.callback(part.__dict__.pop, "dispatch")
        yield


def _travel(degree: int, rank: OneRank, compute: Compute, tokens: Tensor, counts: list[int]) -> Tensor:
    """What the executor does with rows of tokens. Shapes: (row, hidden) both ways."""
    own = counts[: len(counts) // degree]
    rank.note("forward", INT64 * len(counts))
    arrived = _regroup(_exchange(tokens, degree * sum(own), rank), [own] * degree)
    by_expert = [[count] * degree for count in own]
    answers = compute(arrived, [degree * count for count in own])
    return _exchange(_regroup(answers, by_expert), len(tokens), rank)


def _regroup(rows: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    """Rows in pieces of `sizes`, the pieces' outer order made their inner one. Shapes: (row, hidden) both ways."""
    pieces, width = rows.split(list(itertools.chain.from_iterable(sizes))), len(sizes[0])
    return torch.cat([pieces[outer * width + inner] for inner in range(width) for outer in range(len(sizes))])


class _Exchange(torch.autograd.Function):
    """As many rows as a rank is given of all; on the way back, as many gradients as it sent rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, received: int, rank: OneRank) -> Tensor:
        ctx.sent, ctx.rank = len(rows), rank
        return _received(rows, received, rank, "forward")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _received(gradients[0], ctx.sent, ctx.rank, "backward"), None, None


def _exchange(rows: Tensor, received: int, rank: OneRank) -> Tensor:
    result: Tensor = _Exchange.apply(rows, received, rank)  # type: ignore[no-untyped-call]
    return result


def _received(rows: Tensor, count: int, rank: OneRank, phase: Phase) -> Tensor:
    rank.note(phase, size_of(rows.contiguous()))
    return rows.new_empty(count, rows.shape[1])
