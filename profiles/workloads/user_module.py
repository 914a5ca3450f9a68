"""A user's own module as a workload: what it says of itself, and what can be told from it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from profiles.errors import InputError
from profiles.inputs import limits
from profiles.models.families import Style
from profiles.models.profile import WorkloadSpec
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.randomness import random_alike
from profiles.workloads.workload import LayerSpec, Workload, next_token_loss, token_ids

# Larger than any size there is.
MOST = limits.VOCABULARY
Styles = dict[int, dict[str, Style]]


def from_factory(spec: WorkloadSpec) -> Workload:
    """A user's module: an nn.Sequential can be cut into stages; its attributes may add to what is known of it.

    Optional attributes: `vocab_size`, `loss(output, targets)`, `example_input(batch, sequence)`,
    `tensor_parallel_styles` ({layer index: {linear path: "colwise" or "rowwise"}}), `num_heads`, `max_sequence_length`.
    Raises: InputError where the module cannot be imported, its factory fails or gives no nn.Module, or an attribute is
    not what it should be.
    """
    with foreign_code(spec, f"cannot import {spec.factory}"):
        factory = import_factory(spec)
    with foreign_code(spec, f"{spec.factory} fails on the meta device, on which it is built without weights"):
        with torch.device("meta"):
            model = factory()
        return _workload(spec, factory, model)


def _workload(spec: WorkloadSpec, factory: Callable[[], nn.Module], model: object) -> Workload:
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec.factory} gave a {type(model).__name__}: the factory must return an nn.Module")
    children = list(model) if isinstance(model, nn.Sequential) else [model]
    if not children:
        raise InputError(f"{spec.factory} gave an nn.Sequential without layers: give it at least one")
    known = _Attributes(spec, model)
    vocab_size = known.number("vocab_size", 0) or _first_embedding_size(model, spec.factory)
    heads = known.number("num_heads", 1, least=1)
    styles, shared = known.styles(children), _shared_weights(children)
    return Workload(
        spec=spec,
        layers=tuple(
            LayerSpec(
                name=type(child).__name__,
                build=functools.partial(_build_child, factory, index),
                styles=styles.get(index, {}),
            )
            for index, child in enumerate(children)
        ),
        hidden_size=known.number("hidden_size", 0),
        num_heads=heads,
        num_kv_heads=known.number("num_kv_heads", heads, least=1),
        ffn_size=known.number("ffn_size", 0),
        vocab_size=vocab_size,
        max_sequence_length=known.number("max_sequence_length", 0),
        tied_embeddings=False,
        example_input=known.function("example_input", functools.partial(token_ids, vocab_size)),
        loss=known.function("loss", next_token_loss),
        whole=functools.partial(_build_whole, factory),
        shared_weights=tuple(" and ".join(names) for names, _ in shared),
        num_shared=sum((len(names) - 1) * size for names, size in shared),
    )


class _Attributes:
    """What a user's module says of itself, checked."""

    def __init__(self, spec: WorkloadSpec, model: nn.Module) -> None:
        self.spec, self.model = spec, model

    def number(self, name: str, default: int, least: int = 0) -> int:
        """A count, 0 where the module does not know it."""
        value = getattr(self.model, name, default)
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            number = -1
        if not least <= number <= MOST or number != value:
            raise self._wrong(name, value, f"a whole number from {least} to {MOST:,}")
        return number

    def function(self, name: str, default: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A function that gives a tensor."""
        value = getattr(self.model, name, default)
        if not callable(value):
            raise self._wrong(name, value, "a function")
        return value

    def styles(self, layers: Sequence[nn.Module]) -> Mapping[int, dict[str, Style]]:
        """How linears are split, by layer."""
        num_layers = len(layers)
        value = getattr(self.model, "tensor_parallel_styles", {})
        try:
            styles = TypeAdapter(Styles).validate_python(value, strict=True)
        except ValidationError:
            styles = {-1: {}}
        if not all(0 <= index < num_layers for index in styles):
            wanted = f'{{layer index below {num_layers}: {{linear path: "colwise" or "rowwise"}}}}'
            raise self._wrong("tensor_parallel_styles", value, wanted)
        for index, paths in styles.items():
            linears = {path for path, module in layers[index].named_modules() if isinstance(module, nn.Linear)}
            if not set(paths) <= linears:
                raise self._wrong("tensor_parallel_styles", value, f"paths of linears of layer {index}")
        return styles

    def _wrong(self, name: str, value: object, wanted: str) -> InputError:
        return InputError(f"{self.spec.factory}: its attribute {name} is {value!r:.100}: give {wanted}")


def import_factory(spec: WorkloadSpec) -> Callable[[], nn.Module]:
    """The factory itself, from the current folder where that has such a module, else as it is installed."""
    # A module that holds a model has made its weights as it is imported, on every rank.
    with random_alike():
        factory = _imported(spec)
    if not callable(factory):
        raise InputError(f"cannot import {spec.factory}: it is a {type(factory).__name__}, which is not callable")
    return factory


def _imported(spec: WorkloadSpec) -> Callable[[], nn.Module]:
    here = os.getcwd()
    package = spec.module.partition(".")[0]
    found = PathFinder.find_spec(package, [here])
    if found is not None:
        if here not in sys.path and "" not in sys.path:
            # Last, so that other files of the folder stand in for nothing that is installed.
            sys.path.append(here)
        # A folder without an __init__.py is a package only where there is no other of its name.
        if package not in sys.modules and found.origin is not None:
            _load(package, found)
    factory: Callable[[], nn.Module] = getattr(importlib.import_module(spec.module), spec.factory.partition(":")[2])
    return factory


def _load(name: str, found: ModuleSpec) -> None:
    """Import a module from where it was found, as importlib's documentation says it is done."""
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        assert found.loader is not None
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _build_child(factory: Callable[[], nn.Module], index: int) -> nn.Module:
    return _build_whole(factory)[index]


def _build_whole(factory: Callable[[], nn.Module]) -> nn.Sequential:
    model = factory()
    return model if isinstance(model, nn.Sequential) else nn.Sequential(model)


def _shared_weights(layers: Sequence[nn.Module]) -> list[tuple[tuple[str, ...], int]]:
    """Parameters that more than one layer has: the places where they stand, and how many numbers each has."""
    places: dict[nn.Parameter, dict[int, str]] = {}
    for position, layer in enumerate(layers):
        for path, parameter in layer.named_parameters():
            places.setdefault(parameter, {})[position] = f"{position}.{path}"
    return [(tuple(found.values()), parameter.numel()) for parameter, found in places.items() if len(found) > 1]


def _first_embedding_size(model: nn.Module, where: str) -> int:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return module.num_embeddings
    raise InputError(f"{where}: the module has no nn.Embedding; set its attribute vocab_size")
