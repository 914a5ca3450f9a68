"""Values for a module on the meta device, a group of tensors after the other, so that the whole is never held.

A group is a repeated block, or what a module beside the blocks holds itself. Its values come from a folder of
safetensors, or from the module's own code: `_init_weights` of transformers, else `reset_parameters`. Random numbers
begin with the seed and the path of the module that draws them, so that whoever makes a group makes the same; eager
building, which draws them in one go, gives others.
"""

from __future__ import annotations

import contextlib
import copy
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from profiles.errors import InputError
from profiles.tracing.module_copies import replace_tensors
from profiles.workloads.randomness import begin_random, random_kept
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.stored_values import WHOLE, Part, StoredValues

# A tensor by name, or a part of it.
Read = Callable[[str, Part], Tensor]
LARGE_PRIME = 1_000_003
# What a weight is where its numbers do not matter, small enough for products of any width.
HOLLOW = 1e-3


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that are made together, by name, and the modules that make them, children first."""

    path: str
    names: tuple[str, ...]
    makers: tuple[str, ...]


class MetaValues:
    """What the tensors of a module on the meta device are to be; the module itself may be changed in the meantime.

    `groups` are in the order of the module; shared tensors have the name that comes first. On `device` values are made.
    Where any parameter is on meta all are: what code allocates in ways that do not heed the device has no value either.
    """

    def __init__(self, module: nn.Module, seed: int, device: torch.device, folder: Path | None = None) -> None:
        """Look at a module that is on the meta device as a whole or in parts.

        Raises: InputError where the folder's weights are none of it.
        """
        self.name, self.seed, self.device = type(module).__name__, seed, device
        _drop_weights(module)
        kept = {id(tensor): tensor for tensor in _tensors(module) if not tensor.is_meta}
        self._twin = copy.deepcopy(module, kept)
        self._places = tensor_places(self._twin)
        self.groups = tuple(_groups(self._twin, self._places))
        self._stored = None if folder is None else StoredValues(folder, self._twin)

    @contextlib.contextmanager
    def of(self, group: Group, wanted: Iterable[str]) -> Iterator[Read]:
        """While entered, what is wanted of a group can be read.

        Raises: InputError that names a tensor which the module's code leaves without a value.
        """
        stored, wanted = self._stored, set(wanted)
        found = set() if stored is None else {name for name in group.names if stored.has(name)}
        made = self._made(group, [name for name in group.names if name not in found]) if wanted - found else {}

        def read(name: str, part: Part) -> Tensor:
            if name in made:
                return made[name][part] if part else made[name]
            assert stored is not None
            looks = look(self._places[name])
            return stored.read(name, part).to(device=self.device, dtype=looks.dtype)

        yield read
        made.clear()

    @property
    def missing(self) -> list[str]:
        """Weights that the folder lacks, and that are new therefore; not those that the module's code computes."""
        if self._stored is None:
            return []
        computed = getattr(self._twin, "_keys_to_ignore_on_load_missing", None) or ()
        return [
            name
            for name, _ in self._twin.named_parameters()
            if not self._stored.has(name) and not any(re.search(pattern, name) for pattern in computed)
        ]

    def whole(self) -> nn.Module:
        """A copy of the module with all of its values, on the CPU."""
        module = copy.deepcopy(self._twin)
        places = tensor_places(module)
        for group in self.groups:
            with self.of(group, group.names) as read:
                for name in group.names:
                    put(places[name], read(name, WHOLE).cpu())
        return module

    def hollow(self) -> nn.Module:
        """A copy whose weights are all one number and take no memory, and whose buffers are what they should be."""
        module = copy.deepcopy(self._twin)
        places = tensor_places(module)
        weights = dict(module.named_parameters())
        replace_tensors(module, _hollow)
        for group in self.groups:
            buffers = [name for name in group.names if name not in weights]
            with self.of(group, buffers) as read:
                for name in buffers:
                    put(places[name], read(name, WHOLE).cpu())
        return module

    def _made(self, group: Group, names: Sequence[str]) -> dict[str, Tensor]:
        before = {name: look(self._places[name]) for name in names}
        flags = [name for name in names if before[name].dtype == torch.bool]
        try:
            found = self._filled(group, before, 0)
            # Flags have no value that says that nobody gave them one.
            again = self._filled(group, {name: before[name] for name in flags}, 1) if flags else {}
        finally:
            for name, tensor in before.items():
                put(self._places[name], tensor)
        for name in names:
            if _is_left(found[name]) or (name in again and not torch.equal(found[name], again[name])):
                raise InputError(
                    f"{self.name} is on the meta device, and its own code sets no value for {name} when it initialises "
                    "weights: give it in weights=, or build the module with its weights"
                )
        return found

    def _filled(self, group: Group, looks: dict[str, Tensor], flag: int) -> dict[str, Tensor]:
        for name, tensor in looks.items():
            put(self._places[name], _unfilled(tensor, self.device, flag))
        with torch.no_grad(), random_kept(), torch.device(self.device):
            for path in group.makers:
                self._make(path, group.path, fills=True)
            for path in _above(group.path):
                # It may have a say in what its children begin with; what is not of the group is on meta, and stays so.
                self._make(path, group.path, fills=False)
        return {name: look(self._places[name]).detach() for name in looks}

    def _make(self, path: str, group: str, *, fills: bool) -> None:
        """Let the code of a module make its values, as where it is built."""
        module = self._twin.get_submodule(path)
        begin_random((self.seed * LARGE_PRIME + zlib.crc32(f"{path} {group}".encode())) % 2**63)
        initialise = self._initialiser(path)
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        try:
            if initialise is not None:
                initialise(module)
            if not callable(reset):
                return
            own = [tensor for tensor in _own_tensors(module) if not tensor.is_meta]
            if initialise is None or (fills and any(_is_left(tensor) for tensor in own)):
                reset()
                if initialise is not None:
                    initialise(module)
        except (NotImplementedError, RuntimeError) as error:
            raise InputError(
                f"{self.name} is on the meta device, and {path or 'it'} cannot be initialised by itself: "
                f"{str(error).splitlines()[0]}: build the module with its weights"
            ) from error

    def _initialiser(self, path: str) -> Callable[[nn.Module], None] | None:
        """How the model of transformers that a module is in, or is, initialises its parts."""
        for above in (path, *_above(path)) if path else ("",):
            found: Any = getattr(self._twin.get_submodule(above), "_init_weights", None)
            if callable(found):
                return found  # type: ignore[no-any-return]
        return None


Places = list[tuple[nn.Module, str]]


def tensor_places(module: nn.Module) -> dict[str, Places]:
    """Where the tensors of a module that are on the meta device stand, each by its first name.

    Parameters, buffers, and tensors that modules hold beside them.
    """
    names: dict[int, str] = {}
    found: dict[str, Places] = {}
    for path, part in module.named_modules():
        beside = ((name, value) for name, value in vars(part).items() if isinstance(value, Tensor))
        own = (*part._parameters.items(), *part._buffers.items(), *beside)
        for attribute, tensor in own:
            if tensor is not None and tensor.is_meta:
                name = names.setdefault(id(tensor), _join(path, attribute))
                found.setdefault(name, []).append((part, attribute))
    return found


def look(places: Places) -> Tensor:
    """What stands at some places."""
    owner, name = places[0]
    found: Tensor = getattr(owner, name)
    return found


def put(places: Places, value: Tensor) -> None:
    """Let a tensor stand at all places of what is there, a parameter where that is one."""
    before = look(places)
    if isinstance(before, nn.Parameter) and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value, before.requires_grad)
    for owner, name in places:
        if name in owner._parameters:
            owner._parameters[name] = value  # type: ignore[assignment]
        elif name in owner._buffers:
            owner._buffers[name] = value
        else:
            vars(owner)[name] = value


def on_meta(module: nn.Module) -> bool:
    """Whether any weight of a module is on the meta device."""
    return any(parameter.is_meta for parameter in module.parameters())


def _drop_weights(module: nn.Module) -> None:
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, own in part._parameters.items():
            if own is not None and not own.is_meta:
                meta = nn.Parameter(own.detach().to("meta"), own.requires_grad)
                part._parameters[name] = made.setdefault(id(own), meta)


def _groups(module: nn.Module, places: dict[str, Places]) -> Iterator[Group]:
    blocks = repeated_blocks(module)
    names: dict[str, list[str]] = {}
    for name in places:
        owner = name.rpartition(".")[0]
        block = next((path for path in (owner, *_above(owner)) if path in blocks), owner)
        names.setdefault(block, []).append(name)
    for path, own in names.items():
        within = [_join(path, below) for below, _ in module.get_submodule(path).named_modules()]
        # Parents come first there; a module beside the blocks makes what it holds itself.
        makers = tuple(reversed(within)) if path in blocks else (path,)
        yield Group(path, tuple(own), makers)


def _above(path: str) -> Iterator[str]:
    """The paths of the modules that one is in, from the nearest to the whole."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        yield from _own_tensors(part)


def _own_tensors(part: nn.Module) -> Iterator[Tensor]:
    for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
        if isinstance(tensor, Tensor):
            yield tensor


def _unfilled(like: Tensor, device: torch.device, flag: int) -> Tensor:
    """A tensor whose value says that nobody has given it one."""
    made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
    if like.dtype == torch.bool:
        return made.fill_(bool(flag))
    if like.is_floating_point() or like.is_complex():
        return made.fill_(float("nan"))
    return made.fill_(torch.iinfo(like.dtype).max)


def _hollow(own: Tensor) -> Tensor:
    return torch.full((), HOLLOW, dtype=own.dtype, device="cpu").expand(own.shape) if own.is_meta else own


def _is_left(value: Tensor) -> bool:
    """Whether some of a tensor was given no value."""
    if value.is_meta:
        return True
    if value.dtype == torch.bool or not value.numel():
        return False
    if value.is_floating_point() or value.is_complex():
        return bool(value.sum().isnan())
    return bool((value == torch.iinfo(value.dtype).max).any())


def _join(path: str, name: str) -> str:
    return ".".join(part for part in (path, name) if part)
