"""A module that runs as one rank of a split does: parts of weights, of what modules are given and of their numbers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiles.workloads.experts import Compute, expert_parameters, set_dispatch
from profiles.workloads.forwards import replace_forward
from profiles.workloads.tensor_splits import CHOSEN, COLUMNS, COLUMNS_INSIDE, EXPERTS, ROWS, Pieces, Split


class Ranks:
    """One rank among others, as its modules see them; by itself it hears of no other."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def entered(self, path: str, value: Tensor) -> Tensor:
        """A value that all ranks have, from here on used by each in its own way: its gradients add up."""
        return value

    def added(self, path: str, value: Tensor, bias: Tensor | None) -> Tensor:
        """The sum of what the ranks have, and once the bias; each goes on with the whole."""
        return value if bias is None else value + bias

    def part(self, parameter: Tensor, dim: int, pieces: Pieces) -> Tensor:
        """This rank's part of a weight that is split."""
        return taken(parameter, dim, pieces)


def taken(value: Tensor, dim: int, pieces: Pieces) -> Tensor:
    """The pieces of a tensor along a dimension, one behind the other."""
    if len(pieces) == 1:
        (start, stop) = pieces[0]
        return value.narrow(dim, start, stop - start)
    return torch.cat([value.narrow(dim, start, stop - start) for start, stop in pieces], dim)


def run_as_rank(module: nn.Module, split: Split, ranks: Ranks) -> ExitStack:
    """Let a module run as one rank of a split from now on; closing what is returned undoes it."""
    undo = ExitStack()
    for path, style in split.styles.items():
        part = module.get_submodule(path)
        replace_forward(undo, part, functools.partial(_WAYS[style], split, ranks, path, part, part.forward))
    by_owner: dict[str, list[str]] = {}
    for name in split.parameters:
        by_owner.setdefault(name.rpartition(".")[0], []).append(name)
    for path, names in by_owner.items():
        part = module.get_submodule(path)
        replace_forward(undo, part, functools.partial(_with_parts, split, ranks, part, names, part.forward))
    for path in {path for path, _ in split.arguments}:
        part = module.get_submodule(path)
        replace_forward(undo, part, functools.partial(_with_arguments, split, ranks, path, part.forward))
    for path, values in split.attributes.items():
        part = module.get_submodule(path)
        for name, value in values.items():
            _set(undo, part, name, value)
    return undo


def split_dims(part: Any, style: str, is_transposed: bool) -> dict[str, int]:
    """Along which dimension each parameter of a module is split, of those that are."""
    if style == EXPERTS:
        return dict.fromkeys(expert_parameters(part), 0)
    if style == ROWS:
        return {"weight": int(not is_transposed)}
    dims = {"weight": int(is_transposed), "bias": 0} if style in (COLUMNS, COLUMNS_INSIDE) else {}
    return {name: dim for name, dim in dims.items() if getattr(part, name) is not None}


def _set(undo: ExitStack, part: nn.Module, name: str, value: int) -> None:
    """Give a module a number, or a copy of its configuration with it: others have the same one."""
    holder, _, within = name.rpartition(".")
    if holder:
        own = copy.copy(getattr(part, holder))
        setattr(own, within, value)
        undo.callback(setattr, part, holder, getattr(part, holder))
        setattr(part, holder, own)
    else:
        undo.callback(setattr, part, name, getattr(part, name))
        setattr(part, name, value)


def _columns(split: Split, ranks: Ranks, path: str, part: Any, forward: Any, value: Tensor) -> Tensor:
    own = split.pieces[path][ranks.rank]
    if split.styles[path] == COLUMNS:
        value = ranks.entered(path, value)
    weight = ranks.part(part.weight, int(path in split.transposed), own)
    bias = None if part.bias is None else ranks.part(part.bias, 0, own)
    return functional.linear(value, weight.t() if path in split.transposed else weight, bias)


def _rows(split: Split, ranks: Ranks, path: str, part: Any, forward: Any, value: Tensor) -> Tensor:
    weight = ranks.part(part.weight, int(path not in split.transposed), split.pieces[path][ranks.rank])
    product = functional.linear(value, weight.t() if path in split.transposed else weight)
    return ranks.added(path, product, part.bias)


def _chosen(split: Split, ranks: Ranks, path: str, part: Any, forward: Any, value: Tensor) -> Tensor:
    pieces = split.pieces[path][ranks.rank]
    own = taken(ranks.entered(path, forward(value)), -1, pieces)
    # No view of what autograd may not see changed in place.
    return own.clone() if len(pieces) == 1 else own


def _experts(
    split: Split, ranks: Ranks, path: str, part: Any, forward: Any, hidden: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    pieces = split.pieces[path][ranks.rank]
    parts = {name: ranks.part(own, 0, pieces) for name, own in expert_parameters(part).items()}
    set_dispatch(part, functools.partial(_own_experts, pieces[0]))
    try:
        with holding(part, parts):
            answers = forward(ranks.entered(path, hidden), index, ranks.entered(path, weights))
    finally:
        del part.__dict__["dispatch"]
    return ranks.added(path, answers, None)


def _own_experts(own: tuple[int, int], compute: Compute, tokens: Tensor, counts: list[int]) -> Tensor:
    """What the experts from the first to before the last of `own` make of their rows, and zeros for all others."""
    before, inside = sum(counts[: own[0]]), sum(counts[own[0] : own[1]])
    answers = compute(tokens.narrow(0, before, inside), counts[own[0] : own[1]])
    return functional.pad(answers, (0, 0, before, len(tokens) - before - inside))


_WAYS: dict[str, Callable[..., Tensor]] = {
    COLUMNS: _columns, COLUMNS_INSIDE: _columns, ROWS: _rows, CHOSEN: _chosen, EXPERTS: _experts,
}  # fmt: skip


def _with_parts(
    split: Split, ranks: Ranks, part: Any, names: list[str], forward: Any, *args: Any, **kwargs: Any
) -> Any:
    """Call a module that finds parts of its parameters under their names."""
    parts: dict[str, Tensor] = {}
    for name in names:
        (dim, pieces), own = split.parameters[name], name.rpartition(".")[2]
        parts[own] = taken(getattr(part, own), dim, pieces[ranks.rank])
    with holding(part, parts):
        return forward(*args, **kwargs)


@contextmanager
def holding(part: nn.Module, parts: Mapping[str, Tensor]) -> Iterator[None]:
    """While entered, a module finds these under the names of its parameters, which stay registered."""
    part.__dict__.update(parts)
    try:
        yield
    finally:
        for name in parts:
            del part.__dict__[name]


def _with_arguments(split: Split, ranks: Ranks, path: str, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a module with parts of some of its arguments."""
    given: dict[str | int, Any] = dict([*enumerate(args), *kwargs.items()])
    for (owner, key), (dim, pieces) in split.arguments.items():
        value = given.get(key)
        # One that is a part already was made by a module that is split.
        whole = max(stop for own in pieces for _, stop in own)
        if owner == path and isinstance(value, Tensor) and value.shape[dim] == whole:
            given[key] = taken(value, dim, pieces[ranks.rank])
    return forward(*(given[place] for place in range(len(args))), **{name: given[name] for name in kwargs})
