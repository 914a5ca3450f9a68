"""Proof that ranks can share out a module's experts: all shares are computed in turn, and give what the whole gives.

What a rank has is a part of every parameter of a mixture that has those of all experts, and rows of tokens that were
chosen for its own. Nothing else of the module may depend on where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from profiles.errors import PlanError
from profiles.workloads.experts import Compute, expert_parameters, num_experts, set_dispatch
from profiles.workloads.split_comparison import around, close, largest
from profiles.workloads.split_proof import loss_and_gradients, with_numbers
from profiles.workloads.split_ranks import holding

# What lists of experts are called that are modules of their own, which no rank can take by a slice.
LISTS = (nn.ModuleList, nn.ModuleDict)


def mixtures_of(module: nn.Module) -> dict[str, int]:
    """By path, how many experts each mixture has that holds the weights of all of its experts in one."""
    counts = {path: num_experts(part) for path, part in module.named_modules()}
    return {path: count for path, count in counts.items() if count > 1}


def prove_shares(module: nn.Module, run: Callable[[nn.Module], Tensor], *degrees: int) -> tuple[str, ...]:
    """Paths of the mixtures whose experts so many ranks may share, which then give what the module gives.

    `run` gives the loss of the module on a batch, the same one each time. The module is as before afterwards.
    Raises: PlanError that names the module which stands in the way.
    """
    found = mixtures_of(module)
    for degree in degrees:
        if not found:
            raise PlanError(f"expert_parallel={degree}: {_why_none(module)}; use data_parallel")
        for path, count in found.items():
            if count % degree:
                raise PlanError(f"expert_parallel={degree}: {path} has {count} experts, not a multiple of it")
    named = {name: own for name, own in module.named_parameters() if own.requires_grad}
    with with_numbers(module):
        whole = loss_and_gradients(module, named, run)
        for degree in degrees:
            if wrong := _what_is_wrong(module, found, named, run, whole, degree):
                raise PlanError(f"expert_parallel={degree}: {wrong}")
    return tuple(found)


def _what_is_wrong(
    module: nn.Module,
    found: Mapping[str, int],
    named: Mapping[str, Tensor],
    run: Callable[[nn.Module], Tensor],
    whole: tuple[Tensor, Mapping[str, Tensor]],
    degree: int,
) -> str:
    """What is other than of the whole where `degree` shares are computed in turn."""
    called = set[str]()
    with _in_shares(module, found, degree, called):
        try:
            loss, gradients = loss_and_gradients(module, named, run)
        except Exception as error:  # the whole did not fail
            return f"{_last(called, found)} fails when its experts are shared: {error}"
    for path in found:
        if path not in called:
            return f"{path} computes all its experts at once in its own code; use data_parallel"
    wrong = _first_apart(whole[1], gradients)
    if wrong or not close(loss, whole[0]):
        return f"shared experts give a different {wrong or 'loss'}; use data_parallel"
    return ""


def _why_none(module: nn.Module) -> str:
    """Why nothing of a module can be shared out."""
    for path, part in module.named_modules():
        if path.rpartition(".")[2] == "experts" and isinstance(part, LISTS):
            return f"{path} has its experts as separate modules, which ranks cannot share out"
    return f"{type(module).__name__} has no mixture of experts that ranks could share out"


def _last(called: set[str], found: Mapping[str, int]) -> str:
    """The mixture that was computed last."""
    return [path for path in found if path in called][-1] if called else next(iter(found))


@contextmanager
def _in_shares(module: nn.Module, found: Mapping[str, int], degree: int, called: set[str]) -> Iterator[None]:
    """While entered, each mixture computes its experts share by share; `called` are those that have."""
    parts = {path: module.get_submodule(path) for path in found}
    for path, part in parts.items():
        set_dispatch(part, functools.partial(_in_turn, part, path, degree, called))
    try:
        yield
    finally:
        for part in parts.values():
            del part.__dict__["dispatch"]


def _in_turn(
    part: nn.Module, path: str, degree: int, called: set[str], compute: Compute, tokens: Tensor, counts: list[int]
) -> Tensor:
    """What the ranks' shares of experts make of their rows, one after the other. Shapes: (row, hidden) both ways."""
    called.add(path)
    size, answers = len(counts) // degree, list[Tensor]()
    start = 0
    for rank in range(degree):
        own = counts[rank * size : (rank + 1) * size]
        shares: dict[str, Any] = {name: one.chunk(degree)[rank] for name, one in expert_parameters(part).items()}
        with holding(part, shares):
            answers.append(compute(tokens.narrow(0, start, sum(own)), own))
        start += sum(own)
    return torch.cat(answers)


def _first_apart(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The first gradient that is another, in words."""
    least = around({name: largest([value]) for name, value in wanted.items()})
    for name, value in wanted.items():
        if not close(found[name], value, 0.0, least[name]):
            return f"gradient of {name}"
    return ""
