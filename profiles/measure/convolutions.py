"""Measures convolutions and recurrent layers, forward and both gradients, as the products that tracing counts them as.

Dims are those of a product for each gradient: places of the result, channels that come out, weights of each. A library
of kernels treats them unlike products of matrices: depthwise ones run far slower, some of 3 x 3 faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from profiles.artifacts import STRICT
from profiles.laws.curves import fit_kernel
from profiles.machines.profile import KernelCurve, Sample
from profiles.measure.matrix_kernels import TORCH_DTYPES, TURNS, sample
from profiles.measure.timing import Action, Bench
from profiles.models.profile import MIXED

Dims = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A convolution of `count` square images."""

    __pydantic_config__ = STRICT

    count: int
    inputs: int
    outputs: int
    side: int
    window: int
    step: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        """As much as keeps the image's size where the step is one; none where windows stand beside each other."""
        return 0 if self.step == self.window else self.window // 2

    def dims(self, products: int) -> Dims:
        """Of the products that it amounts to."""
        side = (self.side + 2 * self.padding - self.window) // self.step + 1
        weights = self.inputs // self.groups * self.window**2
        return float(products), float(self.count * side * side), float(self.outputs), float(weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """An LSTM over `count` sequences."""

    __pydantic_config__ = STRICT

    count: int
    steps: int
    width: int

    def dims(self, products: int) -> Dims:
        """Of the products that all of its steps amount to."""
        return float(products), float(self.count * self.steps), 4.0 * self.width, 2.0 * self.width


# A stem, blocks of residual networks at their stages, many small images, patches, depthwise ones of two kinds.
CONVOLUTIONS = (
    Convolution(count=2, inputs=3, outputs=64, side=112, window=7, step=2),
    Convolution(count=2, inputs=3, outputs=96, side=112, window=4, step=4),
    Convolution(count=2, inputs=3, outputs=16, side=64, window=3),
    Convolution(count=2, inputs=16, outputs=16, side=64, window=3),
    Convolution(count=2, inputs=64, outputs=64, side=28, window=3),
    Convolution(count=8, inputs=64, outputs=64, side=14, window=3),
    Convolution(count=16, inputs=1, outputs=32, side=32, window=3, step=2),
    Convolution(count=16, inputs=32, outputs=64, side=16, window=3, step=2),
    Convolution(count=16, inputs=32, outputs=32, side=16, window=3),
    Convolution(count=2, inputs=128, outputs=128, side=14, window=3),
    Convolution(count=2, inputs=256, outputs=256, side=7, window=3),
    Convolution(count=2, inputs=64, outputs=256, side=28, window=1),
    Convolution(count=2, inputs=256, outputs=64, side=28, window=1),
    Convolution(count=2, inputs=512, outputs=128, side=7, window=1),
    Convolution(count=2, inputs=96, outputs=96, side=28, window=7, groups=96),
    Convolution(count=2, inputs=192, outputs=192, side=14, window=3, groups=192),
    Convolution(count=2, inputs=32, outputs=32, side=56, window=3, groups=32),
)
RECURRENT = (
    Recurrent(count=2, steps=32, width=128),
    Recurrent(count=4, steps=64, width=256),
    Recurrent(count=16, steps=32, width=512),
)


def measure_convolutions(
    bench: Bench,
    precision: str,
    convolutions: Sequence[Convolution] = CONVOLUTIONS,
    recurrent: Sequence[Recurrent] = RECURRENT,
) -> list[KernelCurve]:
    """The curves of convolutions and of recurrent layers, these in full precision alone."""
    if precision not in TORCH_DTYPES or precision == "fp8":
        return []
    cases = [
        (one.dims(products), _convolution(bench, precision, one, products))
        for one in convolutions
        for products in (1, 2)
    ]
    curves = [_curve(bench, "conv", precision, cases)]
    if precision not in MIXED:
        layers = [(one.dims(products), _recurrent(bench, one, products)) for one in recurrent for products in (1, 2)]
        curves.append(_curve(bench, "rnn", precision, layers))
    return [curve for curve in curves if curve.samples]


def _curve(bench: Bench, name: str, precision: str, cases: Sequence[tuple[Dims, Action]]) -> KernelCurve:
    samples: list[Sample] = []
    for start in range(0, len(cases), TURNS):
        turn = cases[start : start + TURNS]
        timings = bench.time([action for _, action in turn])
        samples += [sample(dims, timing) for (dims, _), timing in zip(turn, timings, strict=True)]
    return fit_kernel("matmul", name, precision, samples)


def _convolution(bench: Bench, precision: str, one: Convolution, products: int) -> Action:
    """The convolution itself, or both of its gradients."""
    dtype = TORCH_DTYPES[precision]
    image = torch.ones(one.count, one.inputs, one.side, one.side, dtype=dtype, device=bench.device)
    weight = torch.ones(one.outputs, one.inputs // one.groups, one.window, one.window, dtype=dtype, device=bench.device)
    steps, padding, none = [one.step] * 2, [one.padding] * 2, [0, 0]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return torch.ops.aten.convolution(  # type: ignore[no-any-return]
                image, weight, None, steps, padding, [1, 1], False, none, one.groups
            )

    if products == 1:
        return forward
    gradient = torch.ones_like(forward())

    def backward() -> object:
        with torch.no_grad():
            return torch.ops.aten.convolution_backward(
                gradient, image, weight, None, steps, padding, [1, 1], False, none, one.groups, [True, True, False]
            )

    return backward


def _recurrent(bench: Bench, one: Recurrent, products: int) -> Action:
    """The layer itself, keeping what its gradients need, or these."""
    layer = nn.LSTM(one.width, one.width, batch_first=True, device=bench.device)
    inputs = torch.ones(one.count, one.steps, one.width, device=bench.device).requires_grad_()
    if products == 1:
        return lambda: layer(inputs)
    outputs = layer(inputs)[0]
    gradient, wanted = torch.ones_like(outputs), (inputs, *layer.parameters())
    return lambda: torch.autograd.grad(outputs, wanted, gradient, retain_graph=True)
