"""Work that is done many times in the same way: where its kernels are only noted, it is done once.

The first of several equal parts is worked on in place of all. Whoever notes kernels is told where that begins and ends,
and counts what it sees there as often as there are parts; values are those of the first part, as those of fake tensors
are of none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor


class Watcher(Protocol):
    """Notes kernels, and what is told of them."""

    def begin_repeated(self, count: int) -> None:
        """From now on each kernel stands for `count` of them."""

    def end_repeated(self, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Until here, of forward passes; the backward passes between what was `given` and `made` are such, too."""


_watchers: list[Watcher] = []


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """While entered, `watcher` is told of work that is done once for many."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def is_watched() -> bool:
    """Whether anyone is told, so that work may be done once."""
    return bool(_watchers)


def once_for_all(count: int, work: Callable[..., Tensor], rows: Tensor, *each: Tensor | None) -> Tensor:
    """What `work` makes of `count` equal parts of `rows` with one entry of all of `each`, part after part.

    Shapes: `rows` (count x part, ...), each (count, ...), the result (count x part, ...).
    """
    entries = [None if one is None else _First.apply(one, count, False) for one in each]  # type: ignore[no-untyped-call]
    # Behind them, for what is split last is put together first on the way back.
    given = [_First.apply(rows, count, True), *entries]  # type: ignore[no-untyped-call]
    tensors = [tensor for tensor in given if tensor is not None]
    for watcher in _watchers:
        watcher.begin_repeated(count)
    made = work(*given)
    for watcher in _watchers:
        watcher.end_repeated(tensors, [made])
    result: Tensor = _All.apply(made, count)  # type: ignore[no-untyped-call]
    return result


class _First(torch.autograd.Function):
    """The first part, or the first entry, of some; the gradient of all is put together of as many like it."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, count: int, is_part: bool) -> Tensor:
        ctx.count, ctx.is_part = count, is_part
        return whole.narrow(0, 0, len(whole) // count) if is_part else whole.select(0, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        together = torch.cat if ctx.is_part else torch.stack
        return together(list(gradients) * ctx.count), None, None


class _All(torch.autograd.Function):
    """As many parts like one, put together."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, count: int) -> Tensor:
        ctx.count = count
        return torch.cat([part] * count)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].narrow(0, 0, len(gradients[0]) // ctx.count), None
