"""The split of a module over ranks: looked for, proven on a batch, and what fails is left whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from profiles.errors import PlanError
from profiles.workloads.split_comparison import Failure
from profiles.workloads.split_finder import Block, Group, called_blocks, experts_of
from profiles.workloads.split_flow import Arguments
from profiles.workloads.split_numbers import Numbers, divided_numbers
from profiles.workloads.split_proof import prove, run_whole, with_numbers
from profiles.workloads.tensor_splits import Split, joined


def find_split(
    module: nn.Module, run: Callable[[nn.Module], Tensor], degree: int, within: Split | None = None
) -> Split:
    """The split of a module with weights over `degree` ranks, which gives what the module gives, up to rounding.

    `run` gives the loss of the module on a batch, the same one each time. The module is as before afterwards. Of what
    is not split `within` another, over fewer ranks, nothing is tried: what two ranks cannot share, four cannot.
    Raises: PlanError that says why nothing of it can be split.
    """
    with with_numbers(module):
        groups, left = _groups(module, run, degree)
        if within is not None:
            groups = [group for group in groups if group.split.styles.keys() <= within.styles.keys()]
        whole = run_whole(module, joined([group.split for group in groups], degree), run) if groups else None
        while groups:
            try:
                split = joined([group.split for group in groups], degree)
                summed = prove(module, split, run, whole)
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
    """Groups of linears that may be split together, none in two of them, and in a sentence each what cannot be.

    Blocks that are built and called alike are split alike: one of them is looked at.
    """
    found, left = experts_of(module, degree)
    failed: dict[str, str] = {}
    known: dict[tuple[object, ...], tuple[str, list[Group], dict[str, str]]] = {}
    for path, (called, trained) in called_blocks(module, run).items():
        kind = _kind(module.get_submodule(path), called, trained)
        if kind not in known:
            known[kind] = (path, *_of_block(Block(module, path, called, trained, degree)))
        first, groups, words = known[kind]
        found += [_moved(group, first, path) for group in groups]
        failed |= {path + rows.removeprefix(first): path + own.removeprefix(first) for rows, own in words.items()}
    # What takes features of some may give features to others.
    split = set[str]().union(*(group.split.styles for group in found))
    return found, left + [words for rows, words in failed.items() if rows not in split]


def _of_block(block: Block) -> tuple[list[Group], dict[str, str]]:
    """Groups of one block, and by what would take their features why others are none."""
    found: list[Group] = []
    failed: dict[str, str] = {}
    likely: dict[type, Numbers] = {}
    used: set[str] = set()
    for group in block.candidates():
        if used & set(group.split.styles):
            continue
        kind = type(block.module.get_submodule(group.unit))
        guess = {f"{group.unit}{name}": own for name, own in likely[kind].items()} if kind in likely else None
        numbers = divided_numbers(block.module, block.flow(), group, guess)
        if numbers is None:
            failed[group.rows] = f"{group.unit} splits into no equal parts: {group.rows} needs the features of all"
            continue
        likely[kind] = {name.removeprefix(group.unit): own for name, own in numbers.items()}
        group.split = replace(group.split, attributes=numbers)
        found.append(group)
        used |= set(group.split.styles)
    return found, failed


def _kind(block: nn.Module, called: Arguments, trained: list[bool]) -> tuple[object, ...]:
    """What is equal in blocks that are split alike."""
    modules = tuple((name, type(part)) for name, part in block.named_modules())
    shapes = tuple((name, tuple(own.shape)) for name, own in block.named_parameters())
    leaves, spec = tree_flatten(called)
    given = tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)
    return modules, shapes, str(spec), given, tuple(trained)


def _moved(group: Group, first: str, path: str) -> Group:
    """A group of one block in another that is like it."""
    split = group.split

    def to(name: str) -> str:
        return path + name.removeprefix(first)

    moved = replace(
        split,
        styles={to(name): style for name, style in split.styles.items()},
        pieces={to(name): own for name, own in split.pieces.items()},
        transposed=frozenset(to(name) for name in split.transposed),
        parameters={to(name): own for name, own in split.parameters.items()},
        arguments={(to(name), key): own for (name, key), own in split.arguments.items()},
        attributes={to(name): own for name, own in split.attributes.items()},
    )
    return Group(rows=to(group.rows), unit=to(group.unit), split=moved)


def _is_of(path: str, group: Group) -> bool:
    return path in group.split.styles or f"{path}.".startswith(f"{group.unit}.")
