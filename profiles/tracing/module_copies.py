"""A module without weights, with fake ones or with real ones of fewer blocks: what a whole-module trace runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
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


def shorten(module: nn.Module) -> dict[str, list[str]]:
    """Take out of each list of blocks all behind the first few that are like the others, in place.

    Gives, by the path of the last block that a list is left, that of the block that each one taken out is like.

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
        looks = [_look(module, module.get_submodule(path), index, len(paths)) for index, path in enumerate(paths)]
        kept, period = _repeating(looks)
        if kept >= len(paths):
            continue
        taken[paths[kept - 1]] = [paths[kept - period + number % period] for number in range(len(paths) - kept)]
        del blocks[kept:]
    return taken


def _repeating(looks: Sequence[object]) -> tuple[int, int]:
    """How many of some blocks show all that there are, and after how many the same come again behind those.

    As many as there are, where none can be left out. The first is not enough, for it may take another input than those
    that are like it.
    """
    again = looks.index(looks[0], 1) if looks[0] in looks[1:] else 0
    kept = max(again, *(looks.index(look) for look in looks)) + 1
    for period in range(1, kept):
        if all(looks[place] == looks[place - period] for place in range(kept, len(looks))):
            return kept, period
    return len(looks), 0


def _look(module: nn.Module, block: nn.Module, index: int, count: int) -> tuple[object, ...]:
    """What tells a block from others, but for its number."""
    parts = []
    for child in block.modules():
        numbers = {
            name: value
            for name, value in vars(child).items()
            if isinstance(value, PLAIN) and not (value == index and isinstance(value, int))
        }
        rates = {name: bool(value) for name, value in vars(child).items() if isinstance(value, float)}
        parts.append((type(child), tuple(sorted(numbers.items(), key=str)), tuple(sorted(rates.items()))))
    shapes = tuple(tuple(parameter.shape) for parameter in block.parameters())
    config = getattr(module, "config", None)
    listed = (
        [value[index] for value in vars(config).values() if isinstance(value, list) and len(value) == count]
        if config
        else []
    )
    return (*parts, shapes, str(listed))


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
