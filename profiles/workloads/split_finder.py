"""Finds in a module which linears can be split over ranks: those that give features, and those that take them.

A linear that takes features is split by what it is given, consecutive features to each rank. What feeds those features
is found in a pass of its block, and split by what it gives, where every rank needs its own; else it is whole. Numbers
that modules keep, heads and widths, are divided where the sum over the ranks is right only then.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from profiles.workloads.experts import num_experts
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.split_flow import Arguments, Flow, look, sources
from profiles.workloads.split_influence import Masks, are_apart, are_whole, filled, influence, shares
from profiles.workloads.tensor_splits import CHOSEN, COLUMNS, COLUMNS_INSIDE, EXPERTS, ROWS, OfRanks, Split

# A feature that feeds nothing, as that of a unit which is off for all samples, is looked for in at most so many passes.
MOST_PASSES = 12
# What transformers calls mixtures with whose experts may be computed anywhere.
GIVEN = ("tokens", "the experts of each", "their weights")


@dataclass(slots=True, kw_only=True)
class Group:
    """Linears that are split together: `rows` is what takes the features; `unit` the module that holds them all.

    `made` are arguments of the unit that are parts already where what makes them is split.
    """

    rows: str
    unit: str
    split: Split
    made: dict[tuple[str, str | int], tuple[int, OfRanks]] = field(default_factory=dict)


def called_blocks(module: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, tuple[Arguments, list[bool]]]:
    """What the repeated blocks of a module, or the module itself, are first called with, and what of it is trained."""
    found: dict[str, tuple[Arguments, list[bool]]] = {}
    blocks = repeated_blocks(module) or {"": module}

    def noting(path: str) -> Callable[..., None]:
        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            if path not in found:
                leaves = tree_flatten((args, kwargs))[0]
                found[path] = (args, kwargs), [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]

        return note

    with ExitStack() as undo, torch.random.fork_rng(devices=[]):
        for path, block in blocks.items():
            undo.callback(block.register_forward_pre_hook(noting(path), with_kwargs=True).remove)
        run(module)
    return found


class Block:
    """A block of a module that is looked at, in more passes where one leaves something open."""

    def __init__(self, module: nn.Module, path: str, called: Arguments, trained: list[bool], degree: int) -> None:
        self.module, self.path, self.called, self.trained, self.degree = module, path, called, trained, degree
        self.flows: list[Flow] = []
        self.shared = _in_several(module)

    def flow(self, number: int = 0) -> Flow:
        """What a pass showed, each with other numbers."""
        while len(self.flows) <= number:
            block = self.module.get_submodule(self.path)
            self.flows.append(look(block, self.path, self.called, self.trained, len(self.flows)))
        return self.flows[number]

    def candidates(self) -> list[Group]:
        """Groups of linears that may be split, in the order in which they run; a linear may be in several."""
        found = (self._group(rows) for rows in dict.fromkeys(self.flow().order))
        return [group for group in found if group is not None and not self._is_shared(group)]

    def _is_shared(self, group: Group) -> bool:
        """Whether another module has one of the weights too, and would keep it as it was."""
        owned = (self.module.get_submodule(path).parameters() for path in group.split.styles)
        return any(id(own) in self.shared for parameters in owned for own in parameters)

    def _group(self, rows: str) -> Group | None:
        """What is split together with a linear that takes features, if its features have places on ranks."""
        flow = self.flow()
        reached = flow.linears[rows].given
        features = reached[0].shape[-1]
        if features % self.degree or not all(value.requires_grad for value in reached):
            return None
        feeding, stops = _feeding(flow, rows)
        if not any(name in flow.linears for name in feeding):
            return None
        masks = self._masks(rows, feeding)
        styles, pieces = {rows: ROWS}, {rows: _equal(features, self.degree)}
        for name in feeding:
            own = [by_dim[-1] for by_dim in masks[name]]
            given = filled(own)
            if given is None or (name in flow.lookups and are_whole(own)):
                return None
            styles[name] = COLUMNS if are_apart(own) and name in flow.linears else CHOSEN
            pieces[name] = given
        if all(are_whole([by_dim[-1] for by_dim in masks[name]]) for name in feeding):
            return None
        parameters: dict[str, tuple[int, OfRanks]] = {}
        for name in masks.keys() - feeding.keys():
            found = _apart(masks[name])
            if found is not None and name in flow.parameters:
                parameters[name] = found
            elif found is None and name not in flow.parameters:
                # Something trained reaches the features past all linears, as what is carried around a block does.
                return None
        _enter_once(flow, styles, feeding, stops)
        split = Split(
            degree=self.degree,
            styles=styles,
            pieces=pieces,
            parameters=parameters,
            transposed=frozenset(flow.transposed & set(styles)),
        )
        group = Group(rows=rows, unit=_holder(flow, [rows, *feeding, *parameters]), split=split)
        self._share_arguments(group, reached)
        return group

    def _masks(self, rows: str, feeding: Iterable[str]) -> Masks:
        """Which features feed each rank's, as more and more passes show."""
        total: Masks = {}
        for number in range(MOST_PASSES):
            flow = self.flow(number)
            called = flow.linears[rows].given
            again, stops = _feeding(flow, rows)
            near = set[int]().union(*(sources(value, stops) for value in called))
            names: dict[str, list[Tensor]] = {name: again.get(name, []) for name in feeding}
            names |= {name: [own] for name, own in flow.parameters.items() if id(own) in near}
            names |= {f"argument {place}": [own] for place, own in enumerate(flow.trained) if id(own) in near}
            for name, found in influence(called, names, self.degree).items():
                total[name] = _either(total[name], found) if name in total else found
            if all(total[name] and shares([by_dim[-1] for by_dim in total[name]]) is not None for name in feeding):
                break
        return total

    def _share_arguments(self, group: Group, reached: list[Tensor]) -> None:
        """Of what its module is called with, find what each rank uses a part of."""
        flow = self.flow()
        args, kwargs = flow.arguments[group.unit]
        named: list[tuple[str | int, Any]] = [*enumerate(args), *kwargs.items()]
        given = {key: value for key, value in named if isinstance(value, Tensor) and value.requires_grad}
        trained = {id(tensor) for tensor in (*flow.trained, *flow.parameters.values())}
        made = [tensor for called in (flow.linears | flow.lookups).values() for tensor in called.gave]
        masks = influence(reached, {str(key): [value] for key, value in given.items()}, self.degree)
        shared: dict[tuple[str, str | int], tuple[int, OfRanks]] = {}
        for key, value in given.items():
            found = _apart(masks[str(key)])
            if found is not None:
                is_made = sources(value, made) & (trained | {id(tensor) for tensor in made})
                (group.made if is_made else shared)[group.unit, key] = found
        group.split = replace(group.split, arguments=shared)


def experts_of(module: nn.Module, degree: int) -> tuple[list[Group], list[str]]:
    """Mixtures, with weights of all experts in one, that may be shared out; in a sentence each those that are not."""
    found: list[Group] = []
    left: list[str] = []
    for path, part in module.named_modules():
        count = num_experts(part)
        if count < len(("one", "another")):
            continue
        if len(inspect.signature(part.forward).parameters) != len(GIVEN):
            left.append(f"{path} keeps its experts whole: it is not called with {', '.join(GIVEN)}")
            continue
        if count % degree:
            left.append(f"{path} keeps its experts whole: {count} are not a multiple of {degree}")
            continue
        split = Split(degree=degree, styles={path: EXPERTS}, pieces={path: _equal(count, degree)})
        found.append(Group(rows=path, unit=path, split=split))
    return found, left


def _in_several(module: nn.Module) -> set[int]:
    """The ids of parameters that more than one module has."""
    found = Counter(id(own) for part in module.modules() for own in part.parameters(recurse=False))
    return {number for number, count in found.items() if count > 1}


def _feeding(flow: Flow, rows: str) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """What of linears and lookups a linear is given, with nothing of theirs between; and what all of them give."""
    all_called = {name: called.gave for name, called in (flow.linears | flow.lookups).items() if name != rows}
    stops = [tensor for tensors in all_called.values() for tensor in tensors]
    near = set[int]().union(*(sources(value, stops) for value in flow.linears[rows].given))
    feeding = {
        name: [tensor for tensor in tensors if tensor.requires_grad]
        for name, tensors in all_called.items()
        if any(id(tensor) in near for tensor in tensors)
    }
    return feeding, stops


def _enter_once(flow: Flow, styles: dict[str, str], feeding: dict[str, list[Tensor]], stops: list[Tensor]) -> None:
    """Mark what is fed by whole linears of the group alone: it takes part in the group's features already."""
    inner = {id(tensor) for name in feeding if styles[name] == CHOSEN for tensor in feeding[name]}
    for name in feeding:
        if styles[name] == COLUMNS:
            fed = set[int]().union(*(sources(value, stops) for value in flow.linears[name].given))
            fed -= {id(own) for own in flow.parameters.values()}
            if fed and fed <= inner:
                styles[name] = COLUMNS_INSIDE


def _either(some: list[list[Tensor]], others: list[list[Tensor]]) -> list[list[Tensor]]:
    if not some or not others:
        return some or others
    return [
        [mask | other for mask, other in zip(own, of_other, strict=True)]
        for own, of_other in zip(some, others, strict=True)
    ]


def _apart(masks: list[list[Tensor]]) -> tuple[int, OfRanks] | None:
    """The dimension along which ranks use parts of their own, and those."""
    for dim in range(len(masks[0])):
        own = [by_dim[dim] for by_dim in masks]
        given = shares(own)
        if given is not None and are_apart(own):
            return dim, given
    return None


def _equal(features: int, degree: int) -> OfRanks:
    size = features // degree
    return tuple(((rank * size, (rank + 1) * size),) for rank in range(degree))


def _holder(flow: Flow, paths: Sequence[str]) -> str:
    """The smallest module that holds all of these and is called."""
    common: list[str] = []
    for level in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    while common and ".".join(common) not in flow.arguments:
        common.pop()
    return ".".join(common)
