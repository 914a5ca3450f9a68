"""The repeated blocks of any module: what is sharded, recomputed and traced one by one."""

from __future__ import annotations

from torch import nn

Shapes = tuple[tuple[int, ...], ...]
# Of one list, or of all, before they count as repeated.
LEAST = 2


def repeated_blocks(module: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a module by path, in the order in which they are registered; none lies within another.

    Model: children of a ModuleList or Sequential that has at least two of their class, which hold parameters and are no
    leaves; outermost ones, but where no two of a list are of one size, as stages of a network of images are not, those
    that repeat within them.
    """
    found: dict[str, nn.Module] = {}
    _collect(module, "", found)
    return found


def _collect(module: nn.Module, path: str, found: dict[str, nn.Module]) -> None:
    blocks = _blocks_of(module)
    if blocks:
        inner: dict[str, nn.Module] = {}
        if len({_shapes(block) for block in blocks.values()}) == len(blocks):
            for name, block in blocks.items():
                _collect(block, _join(path, name), inner)
        found.update(inner or {_join(path, name): block for name, block in blocks.items()})
    for name, child in module.named_children():
        if name not in blocks:
            _collect(child, _join(path, name), found)


def _blocks_of(module: nn.Module) -> dict[str, nn.Module]:
    """The children of a list that count as blocks."""
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return {}
    able = {
        name: child
        for name, child in module.named_children()
        if any(True for _ in child.children()) and any(True for _ in child.parameters())
    }
    kinds = [type(child) for child in able.values()]
    return {name: child for name, child in able.items() if kinds.count(type(child)) >= LEAST}


def _shapes(module: nn.Module) -> Shapes:
    return tuple(tuple(parameter.shape) for parameter in module.parameters())


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
