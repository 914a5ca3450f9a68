"""Times of linears by how their weights are kept, and of rounding numbers to int8."""

from __future__ import annotations

import torch
from torch import nn

from profiles.laws.curves import LINEAR_SCHEMES, fit_kernel, work_of
from profiles.machines.profile import KernelCurve
from profiles.measure.matrix_kernels import LONGEST_CALL_SECONDS, sample
from profiles.measure.timing import Action, Bench
from profiles.workloads.int8_linears import can_quantise, quantise, rounded

Shape = tuple[int, int, int]

# (tokens, inputs, outputs)
LINEARS: tuple[Shape, ...] = tuple(
    (tokens, inputs, outputs)
    for tokens in (32, 128, 512)
    for inputs, outputs in ((256, 256), (1024, 256), (256, 1024), (1024, 1024), (1024, 4096))
)

# Numbers that rounding to int8 is timed for, in rows of so many: with rounded weights every product begins with it.
ROUNDED, ROW = (2**12, 2**16, 2**20, 2**22), 512


def measure_linears(bench: Bench, shapes: tuple[Shape, ...] = LINEARS) -> list[KernelCurve]:
    """The forward pass of a linear without gradients, by how its weights are kept; of fp32 alone without torchao."""
    curves = []
    for scheme in ("fp32", *(LINEAR_SCHEMES if can_quantise() else ())):
        short = _short(bench, scheme, shapes)
        timings = bench.time([_linear(scheme, *shape, bench.device) for shape in short])
        samples = [sample(tuple(map(float, shape)), timing) for shape, timing in zip(short, timings, strict=True)]
        curves.append(fit_kernel("linear", scheme, scheme.partition("-")[0], samples))
    timings = bench.time([_round(count, bench.device) for count in ROUNDED])
    samples = [sample((4.0 * count,), timing) for count, timing in zip(ROUNDED, timings, strict=True)]
    return [*curves, fit_kernel("memory", "rounding", "fp32", samples)]


def _short(bench: Bench, scheme: str, shapes: tuple[Shape, ...]) -> list[Shape]:
    """The shapes that are not long, by the rate of a middling one: the formula covers the others.

    Processors without products of int8 take seconds for the largest.
    """
    ordered = sorted(shapes, key=_flops)
    probe = ordered[len(ordered) // 2]
    rate = _flops(probe) / bench.time_one(_linear(scheme, *probe, bench.device)).seconds
    return [shape for shape in shapes if shape == probe or _flops(shape) / rate < LONGEST_CALL_SECONDS]


def _flops(shape: Shape) -> float:
    return float(work_of("linear", shape, "fp32")[0])


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
