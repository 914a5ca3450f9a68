"""Where a module's forward pass is cut into stages, and which tensors cross: seen in one pass of the whole module.

A stage runs the module's own forward with the whole micro-batch. What has parameters and is called whole is an atom:
blocks, embeddings, heads, an encoder without a cut in it. Code between atoms runs on every stage that comes to it;
atoms run on one stage, and stand in with zeros on later ones. A tensor that comes from atoms, is made before a cut and
read behind it, has to be sent: it is known by how many calls came before it, which is the same on every stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from profiles.errors import PlanError

# The call of an atom by its path and count, or of a function by its count.
Call: TypeAlias = tuple[str, int]
# A tensor by what made it, and its place in what that gave.
Key: TypeAlias = tuple[str, int, int]
FUNCTION = "()"
PLAIN = (int, float, bool, str, type(None))
# What is asked of a tensor that does not depend on its numbers.
SHAPES = frozenset(
    ("shape", "device", "dtype", "ndim", "layout", "requires_grad", "is_cuda", "is_leaf", "grad_fn", "size", "dim",
     "stride", "numel", "is_floating_point", "is_contiguous", "__len__", "element_size", "type", "names", "is_nested",
     "is_sparse", "is_quantized", "is_meta", "itemsize", "nbytes", "is_complex", "data_ptr")
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """The look of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    def empty(self) -> Tensor:
        """A tensor that looks so and holds nothing."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta", requires_grad=self.requires_grad)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What an atom gave: the leaves of its output, tensors by their look."""

    leaves: tuple[object, ...]
    spec: TreeSpec


@dataclass(slots=True, kw_only=True)
class Cuts:
    """What one pass of the whole module showed.

    `stages` are those of the calls of atoms, `given` what those gave; `crossing` are the tensors that each stage but
    the first receives, in their order; `names` the tensors that each call gave, by place; `examples` their looks.
    `used` are the parameters that each stage needs, `held` the atoms it runs.
    """

    stages: dict[Call, int] = field(default_factory=dict)
    given: dict[Call, Given] = field(default_factory=dict)
    crossing: dict[int, tuple[Key, ...]] = field(default_factory=dict)
    names: dict[Call, dict[int, Key]] = field(default_factory=dict)
    examples: dict[Key, Example] = field(default_factory=dict)
    used: dict[int, set[nn.Parameter]] = field(default_factory=dict)
    held: dict[int, set[str]] = field(default_factory=dict)


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
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
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
    before = {path: atom.__dict__.get("forward") for path, atom in atoms.items()}
    for path, atom in atoms.items():
        atom.forward = _through(walk, path, atom.forward)
    try:
        with walk:
            yield
    finally:
        for path, atom in atoms.items():
            del atom.__dict__["forward"]
            if before[path] is not None:
                atom.__dict__["forward"] = before[path]


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


class _Recording(Walk):
    """The pass of the whole module in which is seen what crosses."""

    def __init__(self, atoms: Mapping[str, nn.Module], cuts: Sequence[str]) -> None:
        super().__init__()
        self.atoms, self.paths = atoms, list(cuts)
        self.found, self.now = Cuts(), 0
        # Tensors that came from atoms, kept so that no other takes their place in memory.
        self.keys: dict[int, Key] = {}
        self.kept: dict[int, Tensor] = {}
        self.made_at: dict[Key, int] = {}
        self.read_until: dict[Key, int] = {}
        self.direct: set[nn.Parameter] = set()
        self.changed: set[Key] = set()

    def atom(self, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an atom; the first of a stage begins it."""
        if path in self.paths[self.now :] and not self.counts[path]:
            if path != self.paths[self.now]:
                raise PlanError(f"its blocks are run in another order than they stand in: {path} comes first")
            self.now += 1
        call = (path, self.counts[path])
        self.counts[path] += 1
        self.found.stages[call] = self.now
        given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter))
        self.found.used.setdefault(self.now, set()).update(self.atoms[path].parameters(), given)
        self.found.held.setdefault(self.now, set()).add(path)
        self._read((args, kwargs), self.now)
        output = forward(*args, **kwargs)
        leaves, spec = tree_flatten(output)
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *PLAIN)):
                raise PlanError(f"{path} gives a {type(leaf).__name__}: what is in it cannot be sent")
        looks = tuple(_example(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        self.found.given[call] = Given(leaves=looks, spec=spec)
        self._name(call, leaves)
        return output

    def made(self, call: Call, output: Any, given: Sequence[Tensor], changed: Sequence[Tensor], func: Any) -> Any:
        """Note what a function reads, and what it makes of what came from atoms."""
        self.direct.update(tensor for tensor in given if isinstance(tensor, nn.Parameter))
        leaves = tree_leaves(output)
        gives = any(isinstance(leaf, Tensor) for leaf in leaves)
        if not gives and _name_of(func) in SHAPES:
            return output
        # What is read as a number decides how the code goes on, on every stage that comes to it.
        is_derived = self._read(given, self.now if gives else len(self.paths))
        moved = {id(tensor) for tensor in changed} & {id(leaf) for leaf in leaves}
        if changed:
            self.changed.update(self.keys[number] for number in self._sharing(changed) - moved)
        if is_derived and gives:
            for number in moved:
                # From here on it is another tensor, in the place of the first.
                self.keys.pop(number, None)
            self._name(call, leaves)
        return output

    def _sharing(self, changed: Sequence[Tensor]) -> set[int]:
        """Tensors from atoms that lie in the memory of some, and change with them."""
        places = {tensor.untyped_storage().data_ptr() for tensor in changed}
        return {number for number, kept in self.kept.items() if kept.untyped_storage().data_ptr() in places}

    def _name(self, call: Call, leaves: Sequence[object]) -> None:
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                continue
            key = (*call, place)
            known = self.keys.setdefault(id(leaf), key)
            self.found.names.setdefault(call, {})[place] = known
            if known != key:
                continue
            self.kept[id(leaf)] = leaf
            self.made_at[key] = self.now
            self.found.examples[key] = _example(leaf)

    def _read(self, inputs: Any, stage: int) -> bool:
        """Note that a stage reads tensors, and whether any of them came from atoms."""
        read = [self.keys[id(leaf)] for leaf in tree_leaves(inputs) if id(leaf) in self.keys]
        for key in read:
            self.read_until[key] = max(stage, self.read_until.get(key, 0))
        return bool(read)

    def finish(self) -> Cuts:
        """What was seen.

        Raises: PlanError where a block at which a stage begins was not run, or what crosses cannot be sent.
        """
        if self.now < len(self.paths):
            raise PlanError(f"{self.paths[self.now]}, where a stage begins, is not run")
        for stage in range(1, len(self.paths) + 1):
            # In the order in which they are made: dicts keep it.
            self.found.crossing[stage] = tuple(
                key for key, made in self.made_at.items() if made < stage <= self.read_until.get(key, 0)
            )
        sent = {key for keys in self.found.crossing.values() for key in keys}
        if self.changed & sent:
            raise PlanError("a tensor between its blocks is changed in place, and cannot be sent")
        for used in self.found.used.values():
            used |= self.direct
        return self.found


def record(atoms: Mapping[str, nn.Module], cuts: Sequence[str], loss: Callable[[], object]) -> Cuts:
    """What one pass of the whole module shows, which `loss` runs; `cuts` are the blocks at which stages begin.

    Raises: PlanError where that cannot be a pipeline.
    """
    walk = _Recording(atoms, cuts)
    with watching(atoms, walk):
        loss()
    return walk.finish()


def stand_in(given: Given, device: torch.device) -> tuple[list[object], TreeSpec]:
    """What an atom gave, with zeros for its tensors."""
    leaves = [
        torch.zeros(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, Example) else leaf
        for leaf in given.leaves
    ]
    return leaves, given.spec


def _example(tensor: Tensor) -> Example:
    return Example(shape=tuple(tensor.shape), dtype=tensor.dtype, requires_grad=tensor.requires_grad)


def _name_of(func: Any) -> str:
    """A function's name; of a property, that of the property."""
    name = str(getattr(func, "__name__", ""))
    return str(getattr(getattr(func, "__self__", None), "__name__", name)) if name == "__get__" else name
