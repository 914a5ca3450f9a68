"""What kernels give for fake tensors, noted by the looks of what they are given, and made again from that.

Torch's own rules for fake tensors take ten times as long as that, and blocks of a module that are alike run the same
kernels on the same shapes. What is seen first is asked of the kernel itself where its rule for shapes says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from profiles.tracing.kernel_rules import asked, is_asked
from profiles.workloads.fake_tensors import FakeTensor, FakeTensorMode, fake_of, schema_of, storage_of, without_modes

# What kernels are given beside tensors, by which calls are told apart.
PLAIN = (
    int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
CPU = torch.device("cpu")


class _Unlike(Exception):
    """Raised where a call cannot be told from others by what it is given."""


@dataclass(frozen=True, slots=True)
class _Made:
    """The look of a tensor, and which of the tensors given has its memory; -1: none, it has its own."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    source: int


@dataclass(slots=True)
class _Kind:
    """What is known of a kernel: whether calls are told apart by where tensors lie in memory that they share.

    `changes`: whether it changes the first of what it is given, and gives that; `is_asked`: whether its own rule tells.
    """

    is_placed: bool
    changes: bool
    is_asked: bool = False


class KnownResults:
    """The results of calls under one mode of fake tensors."""

    def __init__(self, fake: FakeTensorMode) -> None:
        self._fake = fake
        self._results: dict[object, tuple[type, tuple[_Made | None, ...]] | None] = {}
        self._kinds: dict[Any, _Kind | None] = {}

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func` gives for fake tensors."""
        if func not in self._kinds:
            self._kinds[func] = _kind_of(func)
        kind = self._kinds[func]
        if kind is None or (kind.changes and type(args[0]) is not FakeTensor):
            return func(*args, **kwargs)
        tensors: list[Tensor] = []
        try:
            key = func, _key(args, tensors, kind.is_placed), _key(tuple(kwargs.items()), tensors, kind.is_placed)
        except _Unlike:
            return func(*args, **kwargs)
        known = self._results.get(key)
        if known is not None:
            if kind.changes:
                return args[0]
            of, looks = known
            made = [None if look is None else self._made(look, tensors) for look in looks]
            return made[0] if of is FakeTensor else of(made)
        before = _look(args[0]) if kind.changes else None
        result = asked(self._fake, func, args, kwargs) if kind.is_asked else None
        result = func(*args, **kwargs) if result is None else result
        if kind.changes:
            self._results[key] = (FakeTensor, ()) if result is args[0] and _look(args[0]) == before else None
        else:
            noted = self._noted(result, tensors)
            if noted is not None and not kind.is_placed and any(look and look.source >= 0 for look in noted[1]):
                # It gives views, which its schema does not say.
                kind.is_placed = True
            else:
                self._results[key] = noted
        return result

    def _made(self, look: _Made, given: Sequence[Tensor]) -> Tensor:
        with without_modes():
            plain = torch.empty_strided(look.shape, look.stride, dtype=look.dtype, device="meta")
            if look.source >= 0:
                plain.set_(given[look.source].untyped_storage(), look.offset, look.shape, look.stride)
            return fake_of(self._fake, plain, CPU)

    def _noted(self, result: Any, given: Sequence[Tensor]) -> tuple[type, tuple[_Made | None, ...]] | None:
        """How a result can be made again; None where it cannot."""
        leaves = (result,) if isinstance(result, Tensor) else result
        if type(leaves) not in (tuple, list):
            return None
        looks: list[_Made | None] = []
        places = {storage_of(tensor): place for place, tensor in enumerate(given)}
        own = set[int]()
        for leaf in leaves:
            if leaf is None:
                looks.append(None)
                continue
            if type(leaf) is not FakeTensor or leaf.constant is not None or leaf.layout is not torch.strided:
                return None
            if leaf.device != CPU or leaf.requires_grad or any(leaf is tensor for tensor in given):
                return None
            place = storage_of(leaf)
            look = _Made(*_look(leaf), places.get(place, -1))
            again = self._made(look, given)
            same = again.untyped_storage().nbytes() == leaf.untyped_storage().nbytes()
            if place in own or not same or _look(again) != _look(leaf):
                return None
            own |= {place} if look.source < 0 else set()
            looks.append(look)
        return (FakeTensor if isinstance(result, Tensor) else type(result)), tuple(looks)


def _look(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int, torch.dtype]:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype


def _kind_of(func: Any) -> _Kind | None:
    """What a schema tells; None where shapes and types of what a kernel is given do not tell what it gives."""
    schema = schema_of(func)
    if torch.Tag.dynamic_output_shape in func.tags:
        return None
    aliases = [one.alias_info for one in schema.returns]
    if not schema.is_mutable:
        return _Kind(is_placed=any(aliases), changes=False, is_asked=is_asked(func))
    first, *rest = schema.arguments
    is_first = first.alias_info is not None and first.alias_info.is_write and all(aliases) and len(aliases) == 1
    others = any(one.alias_info is not None and one.alias_info.is_write for one in rest)
    return _Kind(is_placed=False, changes=True) if is_first and not others else None


def _key(values: Sequence[Any], tensors: list[Tensor], is_placed: bool) -> tuple[object, ...]:
    """What tells a call from others; its tensors are added to `tensors`, in order.

    Raises: _Unlike.
    """
    found: list[object] = []
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.layout is not torch.strided or value.dtype.is_complex or value.constant is not None:
                raise _Unlike
            found.append((value.shape, value.stride(), value.dtype, value.storage_offset() if is_placed else 0))
            tensors.append(value)
        elif kind in PLAIN:
            # 1, 1.0 and True are equal, and give other types.
            found.append((kind, value))
        elif kind is list or kind is tuple:
            found.append(_key(value, tensors, is_placed))
        else:
            raise _Unlike
    return tuple(found)
