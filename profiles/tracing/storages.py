"""Storages of tensors while they live: each has a number, and is known to be gone as soon as nothing holds it."""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from profiles.workloads.fake_tensors import storage_of

UNNUMBERED = -1
# Where storages are counted that no segment saved.
FREE = -1


class Storages:
    """Numbers storages in the order in which they are seen, and knows how many bytes live at any time.

    Model: those that a segment saved are counted there, all others beside. A storage's address alone does not name it,
    for a new one may be given the place of a dead one.
    """

    def __init__(self) -> None:
        self.num_bytes: list[int] = []
        # Of those that stand for several, how many.
        self.copies: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._account: dict[int, int] = {}
        self._members: defaultdict[int, set[int]] = defaultdict(set)
        self._sums: defaultdict[int, int] = defaultdict(int)
        self._gone: list[int] = []

    def living(self, tensor: Tensor) -> int:
        """The number of the tensor's storage, where it has one."""
        number = self._numbers.get(storage_of(tensor), UNNUMBERED)
        return number if number in self._watched and self._watched[number]() is not None else UNNUMBERED

    def number(self, tensor: Tensor) -> int:
        """The number of the tensor's storage, a new one where it has none."""
        number = self.living(tensor)
        if number == UNNUMBERED:
            storage = tensor.untyped_storage()
            number = len(self.num_bytes)
            self.num_bytes.append(storage.nbytes())
            self._numbers[storage_of(tensor)] = number
            self._watched[number] = weakref.ref(storage, functools.partial(self._note_gone, number))
            self._put(number, FREE)
        return number

    def save(self, number: int, segment: int) -> None:
        """Count a storage as saved by a segment."""
        self._take(number)
        self._put(number, segment)

    def leave_out(self, number: int) -> None:
        """Count a storage no more."""
        self._take(number)

    def multiply(self, first: int, copies: int) -> None:
        """Let each storage that lives, from number `first` on, stand for as many."""
        self._sweep()
        for number in [number for number in self._account if number >= first and number not in self.copies]:
            account = self._account[number]
            self._take(number)
            self.copies[number] = copies
            self._put(number, account)

    def bytes_of(self, number: int) -> int:
        """Bytes of a storage and of all that it stands for."""
        return self.num_bytes[number] * self.copies.get(number, 1)

    def live_bytes(self, segment: int) -> int:
        """Bytes of what lives beside what other segments saved."""
        self._sweep()
        return self._sums[FREE] + self._sums[segment]

    def free_bytes(self) -> int:
        """Bytes of what lives and no segment saved."""
        self._sweep()
        return self._sums[FREE]

    def live(self, segment: int) -> frozenset[int]:
        """The numbers of what lives beside what other segments saved."""
        self._sweep()
        return frozenset(self._members[FREE] | self._members[segment])

    def _note_gone(self, number: int, _: object) -> None:
        self._gone.append(number)

    def _sweep(self) -> None:
        while self._gone:
            number = self._gone.pop()
            self._take(number)
            del self._watched[number]

    def _put(self, number: int, account: int) -> None:
        self._account[number] = account
        self._members[account].add(number)
        self._sums[account] += self.bytes_of(number)

    def _take(self, number: int) -> None:
        account = self._account.pop(number, None)
        if account is not None:
            self._members[account].discard(number)
            self._sums[account] -= self.bytes_of(number)


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors among the arguments or results of a kernel, in order."""
    found: list[Tensor] = []
    _collect(values, found)
    return found


def _collect(values: Any, found: list[Tensor]) -> None:
    # Torch's own walk through trees takes as long as the rest of what is done with a kernel.
    if isinstance(values, Tensor):
        found.append(values)
    elif isinstance(values, list | tuple):
        for value in values:
            _collect(value, found)
    elif isinstance(values, dict):
        for value in values.values():
            _collect(value, found)


def size_of(tensor: Tensor) -> int:
    """Bytes that the tensor's elements take."""
    # An expanded tensor has more elements than its storage holds.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
