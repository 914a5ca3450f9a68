"""Which numbers of modules, heads and widths, are divided so that what ranks give adds up to what the whole gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiles.workloads.split_finder import Group
from profiles.workloads.split_flow import Arguments, Flow
from profiles.workloads.split_ranks import Ranks, run_as_rank
from profiles.workloads.tensor_splits import Split

# Sets of at most so many numbers are tried, of at most so many that are read.
MOST_TOGETHER, MOST_READ = 4, 12
CLOSE = 1e-4
# What torch and modules raise at shapes that do not fit; anything else is a mistake.
UNFIT = (RuntimeError, ValueError, IndexError, ArithmeticError, AssertionError)
# By path of a module, what of it is divided.
Numbers = dict[str, dict[str, int]]


class _Stop(BaseException):
    """Raised where a trial has seen enough."""


class _Trial(Ranks):
    """A rank that keeps its parts of a linear's sums, and stops behind the last."""

    def __init__(self, rank: int, calls: int) -> None:
        super().__init__(rank)
        self.calls, self.parts = calls, list[Tensor]()

    def added(self, path: str, value: Tensor, bias: Tensor | None) -> Tensor:
        """Its part."""
        self.parts.append(value.detach())
        if len(self.parts) == self.calls:
            raise _Stop
        return value


def divided_numbers(module: nn.Module, flow: Flow, group: Group, likely: Numbers | None = None) -> Numbers | None:
    """The numbers that are divided, the fewest that do; `likely` ones are tried first. None where it never adds up."""
    args, kwargs = flow.arguments[group.unit]
    called = tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, (args, kwargs))
    if likely is not None and _adds_up(module, flow, group, called, likely):
        return likely
    able = _able(module.get_submodule(group.unit), group, called)
    for count in range(min(MOST_TOGETHER, len(able)) + 1):
        for chosen in itertools.combinations(able, count):
            numbers: Numbers = {}
            for path, name, value in chosen:
                numbers.setdefault(path, {})[name] = value // group.split.degree
            if _adds_up(module, flow, group, called, numbers):
                return numbers
    return None


def _adds_up(module: nn.Module, flow: Flow, group: Group, called: Arguments, numbers: Numbers) -> bool:
    """Whether what the ranks give adds up, their numbers divided."""
    wanted = flow.linears[group.rows].gave
    split = replace(group.split, attributes=numbers, arguments={**group.split.arguments, **group.made})
    found = [_parts(module, split, group.unit, called, rank, len(wanted)) for rank in range(split.degree)]
    bias: Any = module.get_submodule(group.rows).bias
    for number, whole in enumerate(wanted):
        if any(len(parts) <= number or parts[number].shape != whole.shape for parts in found):
            return False
        total = sum((parts[number] for parts in found[1:]), found[0][number])
        total = total if bias is None else total + bias.detach()
        if float((total - whole.detach()).abs().max()) > CLOSE * float(whole.detach().abs().max()):
            return False
    return True


def _parts(module: nn.Module, split: Split, unit: str, called: Arguments, rank: int, calls: int) -> list[Tensor]:
    """What one rank gives; nothing where it fails on shapes that numbers do not fit."""
    trial = _Trial(rank, calls)
    try:
        with run_as_rank(module, split, trial):
            module.get_submodule(unit)(*called[0], **called[1])
    except _Stop:
        return trial.parts
    except UNFIT:
        return []
    return []


def _able(unit: nn.Module, group: Group, called: Arguments) -> list[tuple[str, str, int]]:
    """The whole numbers that modules of a unit read of themselves while it runs, and that can be divided."""
    found: dict[tuple[str, str], int] = {}
    with ExitStack() as undo:
        for name, part in unit.named_modules():
            path = ".".join(filter(None, (group.unit, name)))
            if path not in group.split.styles:
                undo.enter_context(_reading(part, path, found))
        unit(*called[0], **called[1])
    degree = group.split.degree
    able = [(path, name, value) for (path, name), value in found.items() if value >= degree and not value % degree]
    return able[:MOST_READ]


@contextmanager
def _reading(part: Any, path: str, found: dict[tuple[str, str], int], within: str = "") -> Iterator[None]:
    """While entered, note which numbers of a module are read, and of its configuration."""
    kind: Any = type(part)

    def read(self: Any, name: str) -> Any:
        value = kind.__getattribute__(self, name)
        if type(value) is int and not name.startswith("_"):
            found.setdefault((path, within + name), value)
        return value

    with ExitStack() as undo:
        for name, value in list(vars(part).items()) if not within else []:
            if _is_configuration(name, value):
                undo.enter_context(_reading(value, path, found, f"{name}."))
        object.__setattr__(part, "__class__", type(kind.__name__, (kind,), {"__getattribute__": read}))
        try:
            yield
        finally:
            object.__setattr__(part, "__class__", kind)


def _is_configuration(name: str, value: Any) -> bool:
    """Whether something that a module keeps holds numbers under names, as configurations do."""
    if name.startswith("_") or isinstance(value, nn.Module | Tensor | type) or callable(value):
        return False
    return any(type(own) is int for own in getattr(value, "__dict__", {}).values())
