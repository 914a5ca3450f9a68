"""Linears in 8 bits: rounded while a model trains, quantised by torchao afterwards; and what that takes.

Weights, int8 or fp8 (e4m3), have one scale for each row (output); with `int8-dynamic` activations one for each token,
found as they come.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from profiles.cluster import KernelCurve
from profiles.efficiency import LINEAR_SCHEMES, fit_kernel
from profiles.errors import EnvironmentFailure
from profiles.measure_kernels import sample
from profiles.timing import Action, Bench

INT8_MAX = 127
SMALLEST = 1e-12
# (tokens, inputs, outputs)
LINEARS = tuple(
    (tokens, inputs, outputs)
    for tokens in (32, 128, 512)
    for inputs, outputs in ((256, 256), (1024, 256), (256, 1024), (1024, 1024), (1024, 4096))
)

# Numbers that rounding to int8 is timed for, in rows of so many: with rounded weights every product begins with it.
ROUNDED, ROW = (2**12, 2**16, 2**20, 2**22), 512


def can_quantise() -> bool:
    """Whether torchao is installed."""
    return importlib.util.find_spec("torchao") is not None


def quantise(model: nn.Module, scheme: str) -> None:
    """Turn every linear of the model into 8 bits, in place: its weights alone, or its input too while it runs.

    Raises: EnvironmentFailure where torchao is not installed.
    """
    if not can_quantise():
        raise EnvironmentFailure(f"{scheme} needs torchao: pip install 'trainwright[compress]'")
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    kinds = (Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Float8WeightOnlyConfig)
    quantize_(model, dict(zip(LINEAR_SCHEMES, kinds, strict=True))[scheme]())


def rounded(values: Tensor) -> Tensor:
    """What int8 leaves of each row of `values`; its gradient is that of `values`. Shapes: (..., row)."""
    with torch.no_grad():
        scale = values.abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST) / INT8_MAX
        error = (values / scale).round_() * scale - values
    return values + error


def measure_linears(bench: Bench, shapes: tuple[tuple[int, int, int], ...] = LINEARS) -> list[KernelCurve]:
    """The forward pass of a linear without gradients, by how its weights are kept; of fp32 alone without torchao."""
    curves = []
    for scheme in ("fp32", *(LINEAR_SCHEMES if can_quantise() else ())):
        timings = bench.time([_linear(scheme, *shape, bench.device) for shape in shapes])
        samples = [sample(tuple(map(float, shape)), timing) for shape, timing in zip(shapes, timings, strict=True)]
        curves.append(fit_kernel("linear", scheme, scheme.partition("-")[0], samples))
    timings = bench.time([_round(count, bench.device) for count in ROUNDED])
    samples = [sample((4.0 * count,), timing) for count, timing in zip(ROUNDED, timings, strict=True)]
    return [*curves, fit_kernel("memory", "rounding", "fp32", samples)]


def _round(count: int, device: torch.device) -> Action:
    values = torch.randn(count // ROW, ROW, device=device)
    return lambda: rounded(values)


def _linear(scheme: str, tokens: int, inputs: int, outputs: int, device: torch.device) -> Action:
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=False, device=device))
    if scheme != "fp32":
        quantise(model, scheme)
    hidden = torch.randn(1, tokens, inputs, device=device)

    def forward() -> None:
        with torch.inference_mode():
            model(hidden)

    return forward
