"""A user's own module as a workload: what it says of itself, and what can be told from it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder

import torch
from torch import nn

from profiles.errors import InputError
from profiles.model import WorkloadSpec
from profiles.workloads import LayerSpec, Workload, next_token_loss, token_ids


def from_factory(spec: WorkloadSpec) -> Workload:
    """A user's module: an nn.Sequential can be cut into stages; its attributes may add to what is known of it.

    Optional attributes: `vocab_size`, `loss(output, targets)`, `example_input(batch, sequence)`,
    `tensor_parallel_styles` ({layer index: {linear path: "colwise" or "rowwise"}}), `num_heads`, `max_sequence_length`.
    """
    try:
        factory = _import_factory(spec)
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot import {spec.factory}: {error}; give package.module:factory") from error
    try:
        with torch.device("meta"):
            model = factory()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{spec.factory} failed on the meta device: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec.factory} gave a {type(model).__name__}: the factory must return an nn.Module")
    children = list(model) if isinstance(model, nn.Sequential) else [model]
    styles = getattr(model, "tensor_parallel_styles", {})
    vocab_size = int(getattr(model, "vocab_size", 0) or _first_embedding_size(model, spec.factory))
    heads = int(getattr(model, "num_heads", 1))
    return Workload(
        spec=spec,
        layers=tuple(
            LayerSpec(
                name=type(child).__name__,
                build=functools.partial(_build_child, factory, index),
                styles=dict(styles.get(index, {})),
            )
            for index, child in enumerate(children)
        ),
        hidden_size=int(getattr(model, "hidden_size", 0)),
        num_heads=heads,
        num_kv_heads=int(getattr(model, "num_kv_heads", heads)),
        ffn_size=int(getattr(model, "ffn_size", 0)),
        vocab_size=vocab_size,
        max_sequence_length=int(getattr(model, "max_sequence_length", 0)),
        tied_embeddings=False,
        example_input=getattr(model, "example_input", functools.partial(token_ids, vocab_size)),
        loss=getattr(model, "loss", next_token_loss),
    )


def _import_factory(spec: WorkloadSpec) -> Callable[[], nn.Module]:
    """The factory itself, from the current folder where that has such a module, else as it is installed."""
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
    model = factory()
    return model[index] if isinstance(model, nn.Sequential) else model


def _first_embedding_size(model: nn.Module, where: str) -> int:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return module.num_embeddings
    raise InputError(f"{where}: the module has no nn.Embedding; set its attribute vocab_size")
