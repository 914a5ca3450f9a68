"""Measures what an operator takes in training besides its kernel: modules' Python, views, and autograd's bookkeeping.

Kernels are timed one by one, without modules or gradients. On a GPU, whose host runs ahead, the rest is hidden; a CPU
does one after the other, and in models of small layers it is a tenth of a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiles.measure.timing import Bench
from profiles.tracing.operator_recorder import Recorder

# Of kernels that take as good as nothing.
BATCH, SEQUENCE, WIDTH, HEADS, NUM_BLOCKS = 2, 8, 32, 2, 4


class _Block(nn.Module):
    """A block of a transformer, as libraries write it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (batch, sequence, width) to the same."""
        batch, sequence, width = x.shape
        normed = self.before(x)
        query, key, value = (
            part(normed).view(batch, sequence, HEADS, width // HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, sequence, width))
        fed: Tensor = self.down(functional.gelu(self.up(self.between(x))))
        return x + fed


class _Kept(Recorder):
    """Keeps every kernel that it records, to be called again."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.kernels: list[Callable[[], object]] = []

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._last = partial(func, *args, **kwargs)
        return super()._call(func, args, kwargs)

    def _record(self, *args: Any) -> None:
        super()._record(*args)
        if len(self.recording.operators) > len(self.kernels):
            self.kernels.append(self._last)


def measure_operator_seconds(bench: Bench) -> float:
    """Seconds of an operator in training besides its kernel; 0 on a GPU, where they are hidden.

    Model: forward and backward through blocks of a tiny transformer, less its kernels as they are timed by themselves,
    over how many these are.
    """
    if bench.device.type != "cpu":
        return 0.0
    module = nn.Sequential(*(_Block() for _ in range(NUM_BLOCKS)))
    x = torch.randn(BATCH, SEQUENCE, WIDTH, requires_grad=True)

    def train() -> None:
        module(x).mean().backward()
        module.zero_grad(set_to_none=True)

    train()
    kept = _Kept(module)
    with kept.watch():
        train()
    alike = [(op.name, op.dims, op.read_bytes, op.written_bytes) for op in kept.recording.operators]
    counts = Counter(alike)
    distinct = dict(zip(alike, kept.kernels, strict=True))
    training = bench.time_one(train).seconds
    with torch.no_grad():
        alone = bench.time(list(distinct.values()))
    computing = sum(counts[kind] * timing.seconds for kind, timing in zip(distinct, alone, strict=True))
    return max(0.0, (training - computing) / len(alike))
