"""Atoms of a module, which have parameters and are called whole, and a forward pass that is looked at between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from profiles.tracing.storages import tensors_in
from profiles.workloads.forwards import replace_forward

# The call of an atom by its path and count, or of a function by its count.
Call: TypeAlias = tuple[str, int]
FUNCTION = "()"


class Walk(TorchFunctionMode):
    """A forward pass that is looked at between its atoms."""

    def __init__(self) -> None:
        super().__init__()
        # Whether an atom is at work, or what looks at it: nothing is counted then.
        self.is_inside = False
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch that is called between atoms, and look at what it gives."""
        kwargs = kwargs or {}
        if self.is_inside:
            return func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        before = [tensor._version for tensor in given]
        output = func(*args, **kwargs)
        changed = [tensor for tensor, version in zip(given, before, strict=True) if tensor._version != version]
        call = (FUNCTION, self.counts[FUNCTION])
        self.counts[FUNCTION] += 1
        return self.made(call, output, given, changed, func)

    def made(self, call: Call, output: Any, given: Sequence[Tensor], changed: Sequence[Tensor], func: Any) -> Any:
        """Look at the output of a function, which has changed some of the tensors given; hand on it, or another."""
        raise NotImplementedError

    def atom(self, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an atom, or what stands in for it."""
        raise NotImplementedError


def atoms_of(module: nn.Module, cuts: Iterable[str]) -> dict[str, nn.Module]:
    """The largest modules with parameters that hold no block of `cuts`, but may be one; lists are looked into."""
    cuts = set(cuts)
    found: dict[str, nn.Module] = {}

    def visit(part: nn.Module, path: str) -> None:
        holds = path not in cuts and any(cut.startswith(f"{path}." if path else "") for cut in cuts)
        if holds or isinstance(part, nn.ModuleList | nn.ModuleDict):
            for name, child in part.named_children():
                visit(child, f"{path}.{name}" if path else name)
        elif next(part.parameters(), None) is not None and all(part is not other for other in found.values()):
            found[path] = part

    visit(module, "")
    return found


@contextmanager
def watching(atoms: Mapping[str, nn.Module], walk: Walk) -> Iterator[None]:
    """While entered, calls of the atoms go through `walk`."""
    with ExitStack() as undo:
        for path, atom in atoms.items():
            replace_forward(undo, atom, _through(walk, path, atom.forward))
        with walk:
            yield


def _through(walk: Walk, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if walk.is_inside:
            return forward(*args, **kwargs)
        walk.is_inside = True
        try:
            return walk.atom(path, forward, args, kwargs)
        finally:
            walk.is_inside = False

    return call
