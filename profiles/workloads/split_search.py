"""The split of a module over ranks: looked for, proven on a batch, and what fails is left whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from profiles.errors import PlanError
from profiles.workloads.split_finder import Block, Group, called_blocks, experts_of
from profiles.workloads.split_numbers import Numbers, divided_numbers
from profiles.workloads.split_proof import Failure, prove, with_numbers
from profiles.workloads.tensor_splits import Split, joined


def find_split(module: nn.Module, run: Callable[[nn.Module], Tensor], degree: int) -> Split:
    """The split of a module with weights over `degree` ranks, which gives what the module gives, up to rounding.

    `run` gives the loss of the module on a batch, the same one each time. The module is as before afterwards.
    Raises: PlanError that says why nothing of it can be split.
    """
    with with_numbers(module):
        groups, left = _groups(module, run, degree)
        while groups:
            try:
                split = joined([group.split for group in groups], degree)
                summed = prove(module, split, run)
                return replace(split, summed=summed, left_whole=tuple(left))
            except Failure as failure:
                left.append(f"{failure.path or type(module).__name__}: {failure.why}")
                kept = [group for group in groups if not _is_of(failure.path, group)]
                groups = kept if len(kept) < len(groups) else []
    why = f": {left[0]}" if left else ""
    raise PlanError(
        f"tensor_parallel={degree}: no linears of {type(module).__name__} can be split in pairs{why}; use data_parallel"
    )


def _groups(module: nn.Module, run: Callable[[nn.Module], Tensor], degree: int) -> tuple[list[Group], list[str]]:
    """Groups of linears that may be split together, none in two of them, and in a sentence each what cannot be."""
    found, left = experts_of(module, degree)
    failed: dict[str, str] = {}
    likely: dict[tuple[object, ...], Numbers] = {}
    for path, (called, trained) in called_blocks(module, run).items():
        block, used = Block(module, path, called, trained, degree), set[str]()
        for group in block.candidates():
            if used & set(group.split.styles):
                continue
            kind = (type(module.get_submodule(group.unit)), group.rows.removeprefix(group.unit))
            numbers = divided_numbers(module, block.flow(), group, _at(likely.get(kind), group.unit))
            if numbers is None:
                failed[group.rows] = f"{group.unit} splits into no equal parts: {group.rows} needs the features of all"
                continue
            likely[kind] = {name.removeprefix(group.unit): own for name, own in numbers.items()}
            group.split = replace(group.split, attributes=numbers)
            found.append(group)
            used |= set(group.split.styles)
    # What takes features of some may give features to others.
    split = set[str]().union(*(group.split.styles for group in found))
    return found, left + [words for rows, words in failed.items() if rows not in split]


def _at(numbers: Numbers | None, unit: str) -> Numbers | None:
    return None if numbers is None else {f"{unit}{name}": own for name, own in numbers.items()}


def _is_of(path: str, group: Group) -> bool:
    return path in group.split.styles or f"{path}.".startswith(f"{group.unit}.")
