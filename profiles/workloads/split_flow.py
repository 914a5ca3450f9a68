"""One pass of a block in which is seen which linears and lookups it calls, with what, and what feeds what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from profiles.workloads.forwards import replace_forward

WIDEST = 1e4
Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class Called:
    """The calls of a linear or a lookup: what it was given and gave."""

    given: list[Tensor] = field(default_factory=list)
    gave: list[Tensor] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Flow:
    """What a pass of a block showed, by path in the module.

    `transposed` are linears whose weights have inputs first; `arguments` those that each module within was first called
    with; `trained` tensors that the block was given, and that have gradients in training; `parameters` those of modules
    that are neither linears nor lookups; `order` is that of calls of linears.
    """

    linears: dict[str, Called] = field(default_factory=dict)
    lookups: dict[str, Called] = field(default_factory=dict)
    transposed: set[str] = field(default_factory=set)
    arguments: dict[str, Arguments] = field(default_factory=dict)
    trained: list[Tensor] = field(default_factory=list)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


def is_linear(part: nn.Module) -> bool:
    """Whether a module has a matrix, perhaps a bias, and nothing else: what it gives tells whether it multiplies."""
    own = dict(part.named_parameters(recurse=False))
    weight = own.get("weight")
    is_leaf = next(part.children(), None) is None and set(own) <= {"weight", "bias"}
    return is_leaf and weight is not None and weight.dim() == 2 and hasattr(part, "bias")


def look(block: nn.Module, path: str, called: Arguments, trained: list[bool], seed: int) -> Flow:
    """Run a block with arguments like those that it was called with; `trained` tells which of them have gradients.

    Numbers of theirs are noise around what they were, so that what is zero by chance is so in no other pass.
    """
    random = torch.Generator().manual_seed(seed)
    flow = Flow()
    leaves, spec = tree_flatten(called)
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            leaves[place] = _noisy(leaf.detach(), random).requires_grad_()
            if trained[place]:
                flow.trained.append(leaves[place])
    args, kwargs = tree_unflatten(leaves, spec)
    with ExitStack() as undo:
        for name, part in block.named_modules():
            own = ".".join(filter(None, (path, name)))
            if is_linear(part):
                replace_forward(undo, part, _linear(flow, own, part, part.forward))
            elif isinstance(part, nn.Embedding):
                replace_forward(undo, part, _lookup(flow, own, part.forward))
            else:
                flow.parameters |= {
                    f"{own}.{key}" if own else key: value for key, value in part.named_parameters(recurse=False)
                }
                handle = part.register_forward_pre_hook(_noting(flow, own), with_kwargs=True)
                undo.callback(handle.remove)
        block(*args, **kwargs)
    return flow


def _noisy(value: Tensor, random: torch.Generator) -> Tensor:
    finite = value[value.isfinite()]
    spread = float(finite.std()) if finite.numel() > 1 else 0.0
    # Numbers that are far apart tell what is hidden from what.
    width = spread if 0 < spread < WIDEST else 1.0
    noise = torch.randn(value.shape, generator=random, dtype=torch.float32).to(value)
    return value + width * noise


def _linear(flow: Flow, path: str, part: Any, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        gave = forward(value, *args, **kwargs)
        if args or kwargs or not _multiplies(flow, path, part, value, gave):
            return gave
        own = flow.linears.setdefault(path, Called())
        own.given.append(value)
        own.gave.append(gave)
        flow.order.append(path)
        # Another tensor, so that what changes it in place leaves this one as it is.
        return gave.clone()

    return call


def _multiplies(flow: Flow, path: str, part: Any, value: Tensor, gave: Tensor) -> bool:
    """Whether what a module gives is a product with its weight, which may be kept transposed."""
    if not isinstance(gave, Tensor) or not gave.requires_grad or not value.is_floating_point():
        return False
    with torch.no_grad():
        for is_transposed in (False, True):
            weight = part.weight.t() if is_transposed else part.weight
            if weight.shape != (gave.shape[-1], value.shape[-1]):
                continue
            if torch.allclose(nn.functional.linear(value, weight, part.bias), gave, rtol=1e-3, atol=1e-5):
                if is_transposed:
                    flow.transposed.add(path)
                return True
    return False


def _lookup(flow: Flow, path: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any, **kwargs: Any) -> Tensor:
        gave = forward(*args, **kwargs)
        own = flow.lookups.setdefault(path, Called())
        own.gave.append(gave)
        return gave.clone()

    return call


def _noting(flow: Flow, path: str) -> Callable[..., None]:
    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        flow.arguments.setdefault(path, (args, kwargs))

    return note


def sources(value: Tensor, stops: Iterable[Tensor]) -> set[int]:
    """The ids of tensors, of `stops` or leaves, that one is made of; what those are made of does not count."""
    nodes: dict[Node, int] = {}
    for stop in stops:
        if stop.grad_fn is not None:
            nodes[stop.grad_fn] = id(stop)
    found: set[int] = set()
    seen: set[Node] = set()
    left: list[Node | None] = [value.grad_fn]
    if value.grad_fn is None and value.requires_grad:
        return {id(value)}
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in nodes:
            found.add(nodes[node])
        elif hasattr(node, "variable"):
            found.add(id(node.variable))
        else:
            left += [following for following, _ in node.next_functions]
    return found
