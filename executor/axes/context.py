"""The context axis: each rank holds a part of every sequence, and attention exchanges tokens for heads.

Ulysses' form: an all-to-all gives a rank all tokens of some heads, attention runs as ever, another one gives them back.
torch's own context parallelism is a ring, which has no kernel rule on CPU.
Source: Jacobs et al., DeepSpeed Ulysses, 2023 (arXiv 2309.14509).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from executor.mesh import Coordinates
from executor.observe.events import EXCHANGES
from planner.plans import Plan
from profiles.workloads.blocks import Attend, Embedding, RotaryBlock, SequencePart, set_attention_core
from profiles.workloads.workload import LayerSpec

# Dims of queries, keys and values (batch, head, sequence, size), and of what attention returns.
HEADS, TOKENS = 1, 2
TOKENS_OUT, HEADS_OUT = 1, 2


class AttentionCore:
    """What stands around the product of an attention: the exchange of its context group, and its recomputation.

    `draws` tells whether it drops some of what it attends to.
    """

    def __init__(self, group: dist.ProcessGroup | None, is_recomputed: bool, draws: bool) -> None:
        self.group, self.is_recomputed, self.draws = group, is_recomputed, draws

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention over all tokens; `attend` on what this rank holds would see its part alone."""
        if self.group is None:
            return self._attend(attend, query, key, value)
        query, key, value = (exchange(tensor, self.group, HEADS, TOKENS) for tensor in (query, key, value))
        return exchange(self._attend(attend, query, key, value), self.group, TOKENS_OUT, HEADS_OUT)

    def _attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not self.is_recomputed:
            return attend(query, key, value)
        result: Tensor = checkpoint(attend, query, key, value, use_reentrant=False, preserve_rng_state=self.draws)
        return result


class _Exchange(torch.autograd.Function):
    """An all-to-all that cuts one dim and joins another; its gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup, cut: int, join: int) -> Tensor:
        ctx.group, ctx.cut, ctx.join = group, cut, join
        return _all_to_all(tensor, group, cut, join)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradients[0], ctx.group, ctx.join, ctx.cut), None, None, None


def exchange(tensor: Tensor, group: dist.ProcessGroup, cut: int, join: int) -> Tensor:
    """Give each rank of `group` its piece of the dim `cut`, and join the pieces that come in along the dim `join`."""
    result: Tensor = _Exchange.apply(tensor, group, cut, join)  # type: ignore[no-untyped-call]
    return result


def _all_to_all(tensor: Tensor, group: dist.ProcessGroup, cut: int, join: int) -> Tensor:
    sent = torch.stack(tensor.chunk(group.size(), dim=cut))
    received = torch.empty_like(sent)
    with record_function(EXCHANGES["context"]):
        dist.all_to_all_single(received, sent, group=group)
    return torch.cat(received.unbind(0), dim=join)


def place_layer(layer: nn.Module, plan: Plan, place: Coordinates) -> None:
    """Tell a layer which tokens it is given, so that positions are counted from the start of the sequence."""
    if isinstance(layer, RotaryBlock):
        gathered = plan.tensor_parallel if plan.sequence_parallel else 1
        layer.part = SequencePart(gathered, place.context)
    elif isinstance(layer, Embedding):
        layer.part = SequencePart(1, place.context)


def set_core(
    layer: nn.Module, spec: LayerSpec, group: dist.ProcessGroup | None, is_recomputed: bool, draws: bool
) -> None:
    """Put an AttentionCore around a layer's attention, where it has one and there is something to do."""
    if spec.paths.attention and (group is not None or is_recomputed):
        set_attention_core(layer.get_submodule(spec.paths.attention), AttentionCore(group, is_recomputed, draws))
