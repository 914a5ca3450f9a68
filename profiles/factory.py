"""A user's own module as a workload: what it says of itself, and what can be told from it."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable

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
    factory = _import_factory(spec.factory)
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


def _import_factory(path: str) -> Callable[[], nn.Module]:
    module_name, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory: Callable[[], nn.Module] = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot import {path}: {error}; give package.module:factory") from error
    return factory


def _build_child(factory: Callable[[], nn.Module], index: int) -> nn.Module:
    model = factory()
    return model[index] if isinstance(model, nn.Sequential) else model


def _first_embedding_size(model: nn.Module, where: str) -> int:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return module.num_embeddings
    raise InputError(f"{where}: the module has no nn.Embedding; set its attribute vocab_size")
