"""A layer's experts: tokens sorted by the expert that was chosen for them, each expert's in one product.

Under fake tensors, which have no values, every expert is given as many tokens as the others: what routers are trained
towards, and what the planner prices; one then stands for all where kernels are noted. No token is dropped.
Source: Lepikhin et al., GShard, 2020 (arXiv 2006.16668), without its capacity.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from profiles.workloads.fake_tensors import FakeTensor
from profiles.workloads.repeats import is_watched, once_for_all

# The name under which transformers finds `experts`.
EXPERTS = "trainwright"
WEIGHT_DIMS = 3  # of a weight that has those of every expert
NARROW = 16  # numbers between the linears of an expert whose width does not matter
# Rows by expert, how many each has, and what the experts make of them. Shapes: (row, hidden) both ways.
Compute = Callable[[Tensor, list[int]], Tensor]


def register_experts() -> None:
    """Make `experts` known to transformers, which mixtures of any family then call; again and again does no harm."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(EXPERTS, experts)


def experts(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What the chosen experts make of every token, weighted. Shapes: (token, hidden), twice (token, chosen)."""
    chosen = top_k_index.flatten()
    order = chosen.argsort(stable=True)
    rows = order // top_k_index.shape[1]
    counts = _counts(chosen, module.num_experts)
    compute: Compute = functools.partial(_compute, module)
    dispatch: Callable[[Compute, Tensor, list[int]], Tensor] | None = module.__dict__.get("dispatch")
    tokens = hidden[rows]
    answers = compute(tokens, counts) if dispatch is None else dispatch(compute, tokens, counts)
    # Put back rather than added by index: that would keep what it adds for backward, as large as all answers.
    by_token = answers[order.argsort()].unflatten(0, top_k_index.shape)
    result: Tensor = (by_token * top_k_weights[..., None]).sum(dim=1).to(hidden.dtype)
    return result


def set_dispatch(module: nn.Module, dispatch: Callable[[Compute, Tensor, list[int]], Tensor]) -> None:
    """Let these experts call `dispatch(compute, tokens, counts)` in place of `compute(tokens, counts)`."""
    module.__dict__["dispatch"] = dispatch


def expert_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """A mixture's own parameters that have those of every expert along their first dimension; none of other modules.

    Transformers keeps weights of all experts of a layer in two tensors of three dimensions, and biases in two of two.
    """
    own = dict(module.named_parameters(recurse=False))
    counts = [parameter.shape[0] for parameter in own.values() if parameter.dim() == WEIGHT_DIMS]
    if len(counts) < len(("up", "down")) or len(set(counts)) > 1:
        return {}
    return {name: one for name, one in own.items() if one.dim() > 1 and one.shape[0] == counts[0]}


def num_experts(module: nn.Module) -> int:
    """How many experts a module holds the weights of; 0 of other modules."""
    return next((len(own) for own in expert_parameters(module).values()), 0)


def holds_experts(module: nn.Module) -> bool:
    """Whether a module is a mixture that has the weights of all of its experts in one."""
    return bool(expert_parameters(module))


def narrow_experts(module: nn.Module) -> None:
    """Let all experts be a few numbers wide between their linears, in place; what computes them stays as it is."""
    for part in module.modules():
        own = expert_parameters(part)
        # Where a class does not say how its weights lie, they are left alone.
        if not own or not hasattr(part, "has_gate"):
            continue
        up, is_transposed = "gate_up_proj" if part.has_gate else "up_proj", getattr(part, "is_transposed", False)
        widened = NARROW * (2 if part.has_gate else 1)
        dims = ((up, 2 if is_transposed else 1, widened), (f"{up}_bias", 1, widened))
        for name, dim, size in (*dims, ("down_proj", 1 if is_transposed else 2, NARROW)):
            if name in own and own[name].shape[dim] > size:
                narrow = own[name].detach().narrow(dim, 0, size).clone()
                setattr(part, name, nn.Parameter(narrow, requires_grad=own[name].requires_grad))


def _counts(chosen: Tensor, num_experts: int) -> list[int]:
    """How many rows each expert is due. Shape: (row,)."""
    if isinstance(chosen, FakeTensor):
        each, rest = divmod(len(chosen), num_experts)
        return [each + (expert < rest) for expert in range(num_experts)]
    counts: list[int] = torch.bincount(chosen, minlength=num_experts).tolist()
    return counts


def _compute(module: Any, tokens: Tensor, counts: list[int]) -> Tensor:
    has_gate = getattr(module, "has_gate", True)
    given: list[Tensor | None] = []
    for name in ("gate_up_proj" if has_gate else "up_proj", "down_proj"):
        has_bias = getattr(module, "has_bias", False)
        given += [getattr(module, name), getattr(module, f"{name}_bias") if has_bias else None]
    work = functools.partial(_expert, module, has_gate)
    if isinstance(tokens, FakeTensor) and is_watched() and len(set(counts)) == 1 and 0 < counts[0] < len(tokens):
        return once_for_all(len(counts), work, tokens, *given)
    # Weights are unbound at once: the gradient of an index would be a tensor of all experts for each of them.
    each = zip(*([None] * len(counts) if one is None else one.unbind() for one in given), strict=True)
    # An expert without tokens takes part too: its gradient is zero and not missing, for other ranks average theirs.
    return torch.cat([work(own, *weights) for own, weights in zip(tokens.split(counts), each, strict=True)])


def _expert(
    module: Any,
    has_gate: bool,
    tokens: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
) -> Tensor:
    """What one expert makes of its tokens. Shapes: (row, hidden) both ways."""
    if getattr(module, "is_transposed", False):
        up, down = up.t(), down.t()
    wide = nn.functional.linear(tokens, up, up_bias)
    made = nn.functional.linear(_gated(module, wide) if has_gate else module.act_fn(wide), down, down_bias)
    normed: Tensor = module.post_expert_norm(made) if getattr(module, "has_post_expert_norm", False) else made
    return normed


def _gated(module: Any, wide: Tensor) -> Tensor:
    """What the activation makes of both halves, in a way of the family's own where it has one."""
    own: Callable[[Tensor], Tensor] | None = getattr(module, "_apply_gate", None)
    if own is not None:
        return own(wide)
    gate, up = wide.chunk(2, dim=-1)
    gated: Tensor = module.act_fn(gate) * up
    return gated
