"""Proof that a split gives what the whole module gives: every rank is run in turn, and what they add up is compared.

Each rank goes on with what the whole module has where ranks add up, so that an error shows where it is made: in the sum
of what the ranks give, or of the gradients of what they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from profiles.workloads.forwards import replace_forward
from profiles.workloads.randomness import silence
from profiles.workloads.split_comparison import Compared, Failure, around, close, largest, summed_over
from profiles.workloads.split_ranks import Ranks, run_as_rank
from profiles.workloads.tensor_splits import CHOSEN, COLUMNS, EXPERTS, ROWS, Split

# What parameters that are one number throughout are changed by: small beside what products of layers give.
NOISE = 0.02


@dataclass(slots=True, kw_only=True)
class Seen:
    """What was seen at linears of a split in one pass, call by call."""

    entered: dict[str, list[Tensor]] = field(default_factory=dict)
    gradients: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    # The largest gradient of what each gives.
    given_back: dict[str, float] = field(default_factory=dict)
    added: dict[str, list[Tensor]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def at(self, paths: Collection[str]) -> Seen:
        """The same at some of them."""

        def some(values: dict[str, Any]) -> dict[str, Any]:
            return {path: own for path, own in values.items() if path in paths}

        return Seen(
            entered=some(self.entered),
            gradients=some(self.gradients),
            given_back=some(self.given_back),
            added=some(self.added),
            order=[path for path in self.order if path in paths],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A pass of the whole module: its loss, the gradients of its parameters by name, and what was seen at linears."""

    loss: Tensor
    gradients: dict[str, Tensor]
    seen: Seen


class _Watched(torch.autograd.Function):
    """The same value; notes its gradient, and hands on that, or another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, note: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.note = note
        # No view, which code could not change in place.
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.note(gradients[0]), None


class _Replaced(torch.autograd.Function):
    """Another value to the last bit, which may decide how code goes on; the gradient is that of the first."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, wanted: Tensor) -> Tensor:
        return wanted.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _replaced(value: Tensor, wanted: Tensor) -> Tensor:
    result: Tensor = _Replaced.apply(value, wanted)  # type: ignore[no-untyped-call]
    return result


def _watched(value: Tensor, note: Callable[[Tensor], Tensor]) -> Tensor:
    result: Tensor = _Watched.apply(value, note)  # type: ignore[no-untyped-call]
    return result


class _One(Ranks):
    """One rank of several, one after the other; `whole` is what the whole module showed."""

    def __init__(self, rank: int, whole: Seen) -> None:
        super().__init__(rank)
        self.whole, self.seen = whole, Seen()

    def entered(self, path: str, value: Tensor) -> Tensor:
        """The value, which all ranks must have alike."""
        calls = self.seen.entered.setdefault(path, [])
        number = len(calls)
        calls.append(value.detach())
        wanted = self.whole.entered[path][number]
        if value.shape != wanted.shape or not close(value.detach(), wanted):
            raise Failure(path=path, why="its input or output is not the same on every rank")

        def note(gradient: Tensor) -> Tensor:
            self.seen.gradients.setdefault(path, {})[number] = gradient
            return self.whole.gradients[path].get(number, torch.zeros_like(gradient))

        return _watched(value, note)

    def added(self, path: str, value: Tensor, bias: Tensor | None) -> Tensor:
        """What the whole module has there."""
        calls = self.seen.added.setdefault(path, [])
        wanted = self.whole.added[path][len(calls)]
        calls.append(value.detach())
        self.seen.order.append(path)
        if value.shape != wanted.shape:
            raise Failure(path=path, why="a rank's part has a different shape")
        return _replaced(value if bias is None else value + bias, wanted)


@contextmanager
def _whole_run(module: nn.Module, split: Split, seen: Seen) -> Iterator[None]:
    """While entered, the module runs as it is, and what matters of it is noted."""
    with ExitStack() as undo:
        for path, style in split.styles.items():
            part = module.get_submodule(path)
            replace_forward(undo, part, _noted(seen, path, style, part.forward))
        yield


def _noted(seen: Seen, path: str, style: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    seen.gradients[path] = {}

    def enter(value: Tensor) -> Tensor:
        calls = seen.entered.setdefault(path, [])
        number = len(calls)
        calls.append(value.detach())

        def note(gradient: Tensor) -> Tensor:
            seen.gradients[path][number] = gradient
            return gradient

        return _watched(value, note)

    def call(value: Tensor, *others: Tensor) -> Tensor:
        if style == EXPERTS:
            index, weights = others
            gave = forward(enter(value), index, enter(weights))
        else:
            gave = forward(enter(value) if style == COLUMNS else value)
        if style == CHOSEN:
            return enter(gave)
        if style in (ROWS, EXPERTS):
            seen.added.setdefault(path, []).append(gave.detach().clone())
            seen.order.append(path)
            gave = _watched(gave, size)
        return gave

    def size(gradient: Tensor) -> Tensor:
        seen.given_back[path] = max(largest([gradient]), seen.given_back.get(path, 0.0))
        return gradient

    return call


def run_whole(module: nn.Module, split: Split, run: Callable[[nn.Module], Tensor]) -> Whole:
    """The whole module on the batch of `run`, watched where a split, or any part of it, is to be held against it."""
    seen = Seen()
    with _whole_run(module, split, seen):
        loss, gradients = loss_and_gradients(module, _trained(module), run)
    return Whole(loss=loss, gradients=gradients, seen=seen)


def prove(
    module: nn.Module, split: Split, run: Callable[[nn.Module], Tensor], known: Whole | None = None
) -> frozenset[str]:
    """Names of parameters whose gradients add up over the ranks, where the split gives what the whole module gives.

    `run` gives the loss of the module on a batch, the same one each time; what is `known` of the whole module there,
    watched at all places of the split, is not run again.
    Raises: Failure that names where it does not.
    """
    named = _trained(module)
    found = run_whole(module, split, run) if known is None else known
    whole, loss, gradients = found.seen.at(split.styles.keys()), found.loss, found.gradients
    biases: dict[str, Any] = {
        path: module.get_submodule(path).bias if style == ROWS else None for path, style in split.styles.items()
    }
    ones = [_One(rank, whole) for rank in range(split.degree)]
    compared = Compared(gradients)
    for one in ones:
        try:
            with run_as_rank(module, split, one):
                own, parts = loss_and_gradients(module, named, run)
        except Failure:
            raise
        except Exception as error:
            reached = len(one.seen.order)
            path = whole.order[reached] if reached < len(whole.order) else ""
            raise Failure(path=path, why=f"one of its ranks fails: {error}") from error
        if not close(own, loss):
            raise Failure(path="", why="its loss differs")
        compared.add(parts)
    _compare_calls(whole, ones, biases)
    return summed_over(split, compared)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: own for name, own in module.named_parameters() if own.requires_grad}


def loss_and_gradients(
    module: nn.Module, named: Mapping[str, Tensor], run: Callable[[nn.Module], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss that `run` gives of a module, and its gradients by name: zeros where the loss does not depend on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = run(module)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss.detach(), {
        name: torch.zeros_like(own) if gradient is None else gradient
        for (name, own), gradient in zip(named.items(), found, strict=True)
    }


def _compare_calls(whole: Seen, ones: list[_One], biases: Mapping[str, Tensor | None]) -> None:
    for path, calls in whole.added.items():
        for number, wanted in enumerate(calls):
            parts = [one.seen.added[path][number] for one in ones]
            bias = biases[path]
            total = sum(parts[1:], parts[0]) if bias is None else sum(parts[1:], parts[0]) + bias.detach()
            if not close(total, wanted, largest(parts)):
                raise Failure(path=path, why="the ranks' outputs do not add up to the whole output")
    sizes = {path: largest(list(calls.values())) for path, calls in whole.gradients.items()}
    least = around({path: max(size, whole.given_back.get(path, 0.0)) for path, size in sizes.items()})
    for path, gradients in whole.gradients.items():
        for number, wanted in gradients.items():
            parts = [one.seen.gradients.get(path, {}).get(number, torch.zeros_like(wanted)) for one in ones]
            if not close(sum(parts[1:], parts[0]), wanted, largest(parts), least[path]):
                raise Failure(path=path, why="gradients do not add up")


@contextmanager
def with_numbers(module: nn.Module) -> Iterator[None]:
    """While entered, the module draws no random numbers, and no parameter is one number throughout, as new biases are.

    What would not be seen of a bias that is zero is seen then.
    """
    modes = {part: part.training for part in module.modules()}
    drops = {part: part.dropout for part in module.modules() if isinstance(part, nn.RNNBase)}
    kept: dict[Tensor, Tensor] = {
        own: own.detach().clone()
        for own in module.parameters()
        if own.numel() > 1 and bool((own == own.flatten()[0]).all())
    }
    buffers = {own: own.detach().clone() for own in module.buffers()}
    silence(module)
    random = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for own, before in kept.items():
            own.copy_(before + NOISE * torch.randn(own.shape, generator=random).to(own.device))
    try:
        yield
    finally:
        with torch.no_grad():
            for own, before in (kept | buffers).items():
                own.copy_(before)
        for part, mode in modes.items():
            part.training = mode
        for part, drop in drops.items():
            part.dropout = drop
