"""Where a module's forward pass can be cut into stages, and which tensors cross: seen in one pass of the whole module.

A stage runs the module's own forward with the whole micro-batch. What has parameters and is called whole is an atom:
blocks, embeddings, heads. Code between atoms runs on every stage that comes to it; atoms run on one stage, and stand in
with zeros on later ones. A stage may begin wherever a block is called. A tensor that comes from atoms, is made before
such a cut and read behind it, has to be sent: it is known by how many calls came before it, which is the same on every
stage.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from profiles.errors import PlanError
from profiles.tracing.atoms import Call, Walk, watching
from profiles.workloads.fake_tensors import storage_of

# A tensor by what made it, and its place in what that gave.
Key: TypeAlias = tuple[str, int, int]
T = TypeVar("T")
PLAIN = (int, float, bool, str, type(None))
# What is asked of a tensor that does not depend on its numbers.
SHAPES = frozenset(
    ("shape", "device", "dtype", "ndim", "layout", "requires_grad", "is_cuda", "is_leaf", "grad_fn", "size", "dim",
     "stride", "numel", "is_floating_point", "is_contiguous", "__len__", "element_size", "type", "names", "is_nested",
     "is_sparse", "is_quantized", "is_meta", "itemsize", "nbytes", "is_complex", "data_ptr", "untyped_storage")
)  # fmt: skip
# Behind every cut.
TO_THE_END = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """The look of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return self.dtype.itemsize * math.prod(self.shape)

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
    """What one pass of the whole module showed, as if each call of a block began a stage; or some of them alone.

    `order` are the blocks as they were called. `stages` are those of the calls of atoms, `given` what those gave;
    `crossing` are the tensors that each stage but the first receives, in their order; `names` the tensors that each
    call gave, by place; `examples` their looks. `used` are the parameters that each stage needs, `held` the atoms it
    runs; `refused` says of stages why they cannot begin where they do.
    """

    order: list[str] = field(default_factory=list)
    stages: dict[Call, int] = field(default_factory=dict)
    given: dict[Call, Given] = field(default_factory=dict)
    crossing: dict[int, tuple[Key, ...]] = field(default_factory=dict)
    names: dict[Call, dict[int, Key]] = field(default_factory=dict)
    examples: dict[Key, Example] = field(default_factory=dict)
    used: dict[int, set[nn.Parameter]] = field(default_factory=dict)
    held: dict[int, set[str]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def at(self, starts: Sequence[int]) -> Cuts:
        """The same where stages begin at some calls of blocks alone, which count from 1.

        Raises: PlanError where one cannot.
        """
        for start in starts:
            if start in self.refused:
                raise PlanError(self.refused[start])
        return Cuts(
            order=self.order,
            stages={call: bisect_right(starts, part) for call, part in self.stages.items()},
            given=self.given,
            crossing={stage: self.crossing[start] for stage, start in enumerate(starts, 1)},
            names=self.names,
            examples=self.examples,
            used=_together(self.used, starts),
            held=_together(self.held, starts),
        )

    def num_bytes(self, stage: int) -> int:
        """Bytes that a stage receives."""
        return sum(self.examples[key].num_bytes for key in self.crossing[stage])


def _together(members: Mapping[int, set[T]], starts: Sequence[int]) -> dict[int, set[T]]:
    """What belongs to parts of a pass, by the stages that begin at some of them."""
    merged: dict[int, set[T]] = {}
    for part, own in members.items():
        merged.setdefault(bisect_right(starts, part), set()).update(own)
    return merged


class Recording(Walk):
    """The pass of the whole module in which is seen what crosses wherever a block is called."""

    def __init__(self, atoms: Mapping[str, nn.Module], blocks: Collection[str]) -> None:
        """Look at a pass of `atoms`, the `blocks` among them."""
        super().__init__()
        self.atoms, self.blocks = atoms, frozenset(blocks)
        self.found, self.now = Cuts(), 0
        # Tensors that came from atoms, as long as anything can read them.
        self.keys = WeakTensorKeyDictionary()
        self.made_at: dict[Key, int] = {}
        self.read_until: dict[Key, int] = {}
        self.direct: set[nn.Parameter] = set()
        self.changed: set[Key] = set()
        self.unknown: dict[int, str] = {}

    def atom(self, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an atom; each call of a block may begin a stage."""
        if path in self.blocks:
            self.now += 1
            self.found.order.append(path)
        call = (path, self.counts[path])
        self.counts[path] += 1
        self.found.stages[call] = self.now
        given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter))
        self.found.used.setdefault(self.now, set()).update(self.atoms[path].parameters(), given)
        self.found.held.setdefault(self.now, set()).add(path)
        self._read(tree_leaves((args, kwargs)), self.now)
        output = forward(*args, **kwargs)
        leaves, spec = tree_flatten(output)
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *PLAIN)):
                words = f"{path} returns a {type(leaf).__name__}, whose content cannot be sent"
                self.unknown.setdefault(self.now, words)
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
        is_derived = self._read(given, self.now if gives or changed else TO_THE_END)
        moved = [tensor for tensor in changed if any(tensor is leaf for leaf in leaves)]
        if changed:
            self._note_changed(changed, moved)
        if is_derived and gives:
            for tensor in moved:
                # From here on it is another tensor, in the place of the first.
                self.keys.pop(tensor, None)
            self._name(call, leaves)
        return output

    def _note_changed(self, changed: Sequence[Tensor], moved: Sequence[Tensor]) -> None:
        """Note tensors from atoms that lie in the memory of some, and change with them."""
        places = {storage_of(tensor) for tensor in changed}
        self.changed.update(
            key
            for tensor, key in list(self.keys.items())
            if storage_of(tensor) in places and all(tensor is not other for other in moved)
        )

    def _name(self, call: Call, leaves: Sequence[object]) -> None:
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                continue
            key = (*call, place)
            known = self.keys.setdefault(leaf, key)
            self.found.names.setdefault(call, {})[place] = known
            if known == key:
                self.made_at[key] = self.now
                self.found.examples[key] = _example(leaf)

    def _read(self, inputs: Iterable[object], stage: int) -> bool:
        """Note that a stage reads tensors, and whether any of them came from atoms."""
        known = [self.keys.get(leaf) for leaf in inputs if isinstance(leaf, Tensor)]
        read = [key for key in known if key is not None]
        for key in read:
            self.read_until[key] = max(stage, self.read_until.get(key, 0))
        return bool(read)

    def finish(self) -> Cuts:
        """What was seen."""
        found = self.found
        for stage, path in enumerate(found.order, 1):
            # In the order in which they are made: dicts keep it.
            crossing = [key for key, made in self.made_at.items() if made < stage <= self.read_until.get(key, 0)]
            found.crossing[stage] = tuple(crossing)
            unknown = next((words for part, words in self.unknown.items() if part < stage), "")
            if unknown:
                found.refused[stage] = unknown
            elif self.changed.intersection(crossing):
                found.refused[stage] = f"the input of {path} is changed in place, so it cannot be sent"
            elif not crossing:
                found.refused[stage] = f"{path} takes nothing from the modules before it"
        for used in found.used.values():
            used |= self.direct
        return found


def record(atoms: Mapping[str, nn.Module], blocks: Collection[str], loss: Callable[[], object]) -> Cuts:
    """What one pass of the whole module shows, which `loss` runs; a stage may begin where `blocks` are called."""
    walk = Recording(atoms, blocks)
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
