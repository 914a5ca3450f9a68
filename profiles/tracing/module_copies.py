"""A module without weights, with fake ones or with real ones of fewer blocks: what a whole-module trace runs."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from profiles.workloads.repeated_blocks import repeated_blocks

PLAIN = (int, bool, str, tuple, type(None))


class _Schedules(TorchFunctionMode):
    """Numbers that a module computes for itself while it is built, such as a rate for each layer, have values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """While entered, modules are built on the meta device."""
    with torch.device("meta"), _Schedules():
        yield


def shorten(module: nn.Module, keeps_ends: bool = False) -> dict[str, list[str]]:
    """Take out of each list of blocks those behind the first few that are like the others, in place.

    Gives, by the path of the block behind which some were taken out, those of the blocks that they are like. Where it
    `keeps_ends`, one more round of blocks is left before those taken out, and one behind them.

    Model: blocks are alike that have equal parameters, classes and settings; which kinds come first is kept, because
    modules may treat their blocks by number.
    """
    taken: dict[str, list[str]] = {}
    lists: dict[str, list[str]] = {}
    for path in repeated_blocks(module):
        lists.setdefault(path.rpartition(".")[0], []).append(path)
    for parent, paths in lists.items():
        blocks = module.get_submodule(parent)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or len(blocks) != len(paths):
            continue
        listed = _listed(module, len(paths))
        looks = _looks([module.get_submodule(path) for path in paths], listed)
        out = stretches(looks, any_place=not any(listed))
        if keeps_ends:
            out = _between(out, len(paths))
            _say_how_many(module, parent, len(paths), len(paths) - sum(last - first for first, last, _ in out))
        gone = {number for first, last, _ in out for number in range(first, last)}
        kept = [number for number in range(len(paths)) if number not in gone]
        # Blocks that are left are numbered anew.
        named = dict(zip(kept, paths, strict=False))
        for first, last, period in reversed(out):
            like = [named[first - period + number % period] for number in range(last - first)]
            taken[named[first - 1]] = like
            del blocks[first:last]
    return taken


def stretches(looks: Sequence[object], any_place: bool) -> list[tuple[int, int, int]]:
    """Places from one up to another that can be left out, and after how many the same come again before and in them.

    At the end where all that there are come before; else, where they may lie in `any_place`, whole rounds of what
    repeats. The first of several is not enough, for it may take another input than those that are like it.
    """
    behind = _at_end(looks)
    found = _rounds(looks) if any_place else []
    return max(behind, found, key=lambda own: sum(last - first for first, last, _ in own))


def _between(out: Sequence[tuple[int, int, int]], count: int) -> list[tuple[int, int, int]]:
    """The same of `count` places, but for a round before what is left out at the end, and one behind it."""
    if len(out) != 1 or out[0][1] != count:
        return list(out)
    ((first, last, period),) = out
    rounds = (last - first) // period - 2
    return [(first + period, first + period + rounds * period, period)] if rounds > 0 else []


def _say_how_many(module: nn.Module, parent: str, before: int, left: int) -> None:
    """Let the configuration of what holds a list say how many blocks are left: some count outputs of blocks by it."""
    names = parent.split(".")
    holders = (module.get_submodule(".".join(names[:depth])) for depth in range(len(names), -1, -1))
    told = (holder.config for holder in holders if hasattr(holder, "config"))
    config: Any = next((one for one in told if getattr(one, "num_hidden_layers", None) == before), None)
    if config is None or left == before:
        return
    own = copy.copy(config)
    own.num_hidden_layers = left
    for child in module.modules():
        if vars(child).get("config") is config:
            child.config = own


def _at_end(looks: Sequence[object]) -> list[tuple[int, int, int]]:
    count = len(looks)
    again = looks.index(looks[0], 1) if looks[0] in looks[1:] else 0
    least = max(again, *(looks.index(look) for look in looks)) + 1
    for kept in range(least, count):
        for period in range(1, kept):
            if _repeats(looks, kept, period) == count:
                return [(kept, count, period)]
    return []


def _rounds(looks: Sequence[object]) -> list[tuple[int, int, int]]:
    found, place, count = list[tuple[int, int, int]](), 0, len(looks)
    while place < count:
        ends = {period: _repeats(looks, place + period, period) for period in range(1, (count - place) // 2 + 1)}
        rounds = {period: (end - place - period - 1) // period for period, end in ends.items()}
        best = max(rounds, key=lambda period: rounds[period] * period, default=0)
        if not best or rounds[best] < 1:
            place += 1
            continue
        first = place + best + 1
        found.append((first, first + rounds[best] * best, best))
        place = found[-1][1]
    return found


def _repeats(looks: Sequence[object], start: int, period: int) -> int:
    """Up to which place, from `start` on, each look is that of `period` places before."""
    place = start
    while place < len(looks) and looks[place] == looks[place - period]:
        place += 1
    return place


def _looks(blocks: Sequence[nn.Module], listed: Sequence[str]) -> list[object]:
    """What tells blocks of a list from each other, but for their numbers. Shapes: both have an entry for each."""
    owners = [list(block.modules()) for block in blocks]
    values: dict[str, list[bool]] = {}
    for index, children in enumerate(owners):
        for child in children:
            for name, value in vars(child).items():
                if isinstance(value, int) and not isinstance(value, bool):
                    values.setdefault(name, []).append(value == index)
    numbers = {name for name, own in values.items() if all(own)}
    return [_look(block, numbers, said) for block, said in zip(blocks, listed, strict=True)]


def _look(block: nn.Module, numbers: Collection[str], listed: str) -> tuple[object, ...]:
    parts = []
    for child in block.modules():
        plain = {name: value for name, value in vars(child).items() if isinstance(value, PLAIN) and name not in numbers}
        rates = {name: bool(value) for name, value in vars(child).items() if isinstance(value, float)}
        parts.append((type(child), tuple(sorted(plain.items(), key=str)), tuple(sorted(rates.items()))))
    shapes = tuple(tuple(parameter.shape) for parameter in block.parameters())
    return (*parts, shapes, listed)


def _listed(module: nn.Module, count: int) -> list[str]:
    """What the configuration says of each of so many blocks, "" where it says nothing of them one by one."""
    config = getattr(module, "config", None)
    lists = (
        [value for value in vars(config).values() if isinstance(value, list) and len(value) == count] if config else []
    )
    lists = [value for value in lists if value != list(range(count))]
    return [str([value[index] for value in lists]) if lists else "" for index in range(count)]


def replace_tensors(module: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Put what `make` gives in the place of every parameter and buffer, and of tensors beside; shared ones stay so."""
    made: dict[int, Tensor] = {}
    kept: list[Tensor] = []

    def once(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            kept.append(tensor)  # lest another one be given its number
            own = make(tensor.detach())
            made[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
        return made[id(tensor)]

    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False, remove_duplicate=False)):
            child.register_parameter(name, once(parameter))  # type: ignore[arg-type]
        for name, buffer in list(child.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(child, name, once(buffer))
        for name, value in vars(child).items():
            if isinstance(value, Tensor):
                vars(child)[name] = once(value)


def fake_like(tensor: Tensor) -> Tensor:
    """A tensor of the CPU of the same shape and type; fake where the mode for that is on."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def with_weights(module: nn.Module) -> nn.Module:
    """The module itself, from the meta device to the CPU, its weights and buffers as its own code makes them.

    A class of transformers makes them again when it is asked to; others by torch's own layers' ways.
    """
    replace_tensors(module, lambda tensor: torch.zeros_like(tensor, device="cpu"))
    again = getattr(module, "init_weights", None)
    if callable(again):
        again()
        return module
    for child in module.modules():
        reset = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
    return module


def forget_cached(module: nn.Module) -> None:
    """Empty the caches of functions that the module's classes have, which may hold fake tensors."""
    for kind in {kind for child in module.modules() for kind in type(child).__mro__}:
        for value in (*vars(kind).values(), *vars(sys.modules.get(kind.__module__, kind)).values()):
            for function in _behind(value):
                function.cache_clear()


def _behind(value: Any) -> Iterator[Any]:
    """The caches that a function is, or that it calls behind its decorator."""
    value = getattr(value, "__func__", value)  # of static methods and those of classes
    if callable(getattr(value, "cache_clear", None)):
        yield value
        return
    for cell in getattr(value, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # a cell that is empty yet
            if callable(getattr(cell.cell_contents, "cache_clear", None)):
                yield cell.cell_contents
