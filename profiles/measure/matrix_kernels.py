"""Measures matrix products and fused attention: a general grid, and the shapes that given models really run.

Products run in the three layouts that autograd needs, named as BLAS does, by the operand whose columns are contiguous:
nt (input times weight transposed), nn (gradient times weight), tn (gradient transposed times input).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from profiles.artifacts import STRICT
from profiles.laws.curves import fit_kernel, kernel_seconds, work_of
from profiles.machines.profile import KernelCurve, Sample
from profiles.measure.timing import Action, Bench, Timing
from profiles.models.operators import evaluate
from profiles.models.profile import ModelProfile
from profiles.workloads.precision import set_products

Dims = tuple[float, ...]
Sizes = tuple[tuple[int, int, int], ...]  # micro-batch, sequence length, tensor-parallel degree

TORCH_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}
LAYOUTS = ("nt", "nn", "tn")
# fp8 units take one layout alone: operands of others are laid out anew when they are rounded.
FP8_LAYOUTS = ("nt",)
TOKENS = (64, 512, 2048, 8192)
FEATURES = ((256, 256), (1024, 256), (256, 1024), (1024, 1024), (4096, 1024), (1024, 4096), (4096, 4096))
ATTENTION_DIMS: tuple[Dims, ...] = (
    (1, 8, 128, 128, 64),
    (8, 8, 128, 128, 64),
    (1, 8, 512, 512, 64),
    (4, 12, 512, 512, 64),
    (1, 8, 512, 512, 128),
    (1, 16, 1024, 1024, 64),
    (1, 2, 2048, 2048, 64),
)
# One call of the general grid that would take longer is left out: the formula covers it.
LONGEST_CALL_SECONDS = 0.06
# Actions timed in turns share the machine's slow moments; their operands have to fit in memory together.
TURNS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Which shapes are measured; `model_seconds` is the time spent on the models' own shapes per precision and kind."""

    __pydantic_config__ = STRICT

    tokens: tuple[int, ...] = TOKENS
    features: tuple[tuple[int, int], ...] = FEATURES
    attention: tuple[Dims, ...] = ATTENTION_DIMS
    model_seconds: float = 6.0


def measure_matmuls(
    bench: Bench, precision: str, grid: Grid, models: Sequence[ModelProfile], sizes: Sizes
) -> list[KernelCurve]:
    """One curve per layout, and the general curve "" through the samples of all."""
    rate = _probe_flops_per_second(bench, precision)
    curves = []
    layouts = FP8_LAYOUTS if precision == "fp8" else LAYOUTS
    for layout in layouts:
        general = [_matmul_dims(layout, m, n, k) for m, (n, k) in itertools.product(grid.tokens, grid.features)]
        general = [dims for dims in general if _flops(dims) / rate < LONGEST_CALL_SECONDS]
        samples = _time_matmuls(bench, precision, layout, general)
        curve = fit_kernel("matmul", layout, precision, samples)
        own = model_shapes(models, "matmul", layout, precision, sizes) - set(general)
        chosen = within_seconds(curve, own, grid.model_seconds / len(layouts), bench.repeats)
        samples += _time_matmuls(bench, precision, layout, chosen)
        curves.append(fit_kernel("matmul", layout, precision, samples))
    everything = [sample for curve in curves for sample in curve.samples]
    return [*curves, fit_kernel("matmul", "", precision, everything)]


def measure_attention(
    bench: Bench, precision: str, grid: Grid, models: Sequence[ModelProfile], sizes: Sizes
) -> list[KernelCurve]:
    """The curves of causal fused attention, forward and backward."""
    samples = _time_attention(bench, precision, grid.attention)
    backward = fit_kernel("attention_backward", "", precision, samples["attention_backward"])
    own = model_shapes(models, "attention", "causal", precision, sizes) - set(grid.attention)
    chosen = within_seconds(backward, own, grid.model_seconds / 2, bench.repeats)
    for kind, more in _time_attention(bench, precision, chosen).items():
        samples[kind] += more
    return [fit_kernel(kind, "", precision, part) for kind, part in samples.items()]


def model_shapes(models: Sequence[ModelProfile], kind: str, layout: str, precision: str, sizes: Sizes) -> set[Dims]:
    """The distinct dims of the models' operators of `kind` and `layout`, at every size."""
    return {
        tuple(float(evaluate(dim, *size)) for dim in operator.dims)
        for model in models
        for layers in model.layers.values()
        for layer in layers
        for operator in layer.operators
        if operator.kind == kind and operator.layout == layout and operator.dtype == precision
        for size in sizes
    }


def within_seconds(curve: KernelCurve, shapes: Iterable[Dims], seconds: float, repeats: int) -> list[Dims]:
    """The shapes that `seconds` suffice to measure by the curve's own estimate, dearest first: they count most."""
    ordered = sorted(shapes)
    if not ordered:
        return []
    dims = [list(column) for column in zip(*ordered, strict=True)]
    costs = kernel_seconds(curve, *work_of(curve.kind, dims, curve.precision), dims) * (repeats + 2)
    chosen, spent = [], 0.0
    for cost, shape in sorted(zip(costs.tolist(), ordered, strict=True), reverse=True):
        if spent + cost <= seconds:
            spent += cost
            chosen.append(shape)
    return chosen


def _matmul_dims(layout: str, tokens: int, outputs: int, inputs: int) -> Dims:
    m, n, k = {
        "nt": (tokens, outputs, inputs),
        "nn": (tokens, inputs, outputs),
        "tn": (outputs, inputs, tokens),
    }[layout]
    return (1.0, float(m), float(n), float(k))


def _flops(dims: Dims) -> float:
    return float(work_of("matmul", dims, "fp32")[0])


def _probe_flops_per_second(bench: Bench, precision: str) -> float:
    dims = (1.0, 512.0, 512.0, 512.0)
    return _flops(dims) / _time_matmuls(bench, precision, "nt", [dims])[0].seconds


def _time_matmuls(bench: Bench, precision: str, layout: str, shapes: Sequence[Dims]) -> list[Sample]:
    set_products(precision)
    samples = []
    for start in range(0, len(shapes), TURNS):
        turn = shapes[start : start + TURNS]
        timings = bench.time([_matmul(layout, dims, TORCH_DTYPES[precision], bench.device) for dims in turn])
        samples += [sample(dims, timing) for dims, timing in zip(turn, timings, strict=True)]
    return samples


def _matmul(layout: str, dims: Dims, dtype: torch.dtype, device: torch.device) -> Action:
    batch, m, n, k = map(int, dims)
    a = _operand(layout[0], batch, m, k, dtype, device)
    b = _operand(layout[1], batch, k, n, dtype, device)
    if batch == 1:
        a, b = a[0], b[0]
        if dtype == TORCH_DTYPES["fp8"]:
            return _scaled_product(a, b)
        return lambda: torch.mm(a, b)
    return lambda: torch.bmm(a, b)


def _scaled_product(a: Tensor, b: Tensor) -> Action:
    scale = torch.ones((), device=a.device)
    # torchao's own call; the public one, torch.nn.functional.scaled_mm, has no kernel for CPUs in torch 2.11.
    return lambda: torch._scaled_mm(a, b, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)


def _operand(letter: str, batch: int, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if letter == "t":
        return _numbers((batch, columns, rows), dtype, device).transpose(1, 2)
    return _numbers((batch, rows, columns), dtype, device)


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Random, since a GPU's clock depends on the data, but only along the last dim: drawing takes long on CPU.
    return torch.randn(shape[-1], device=device).to(dtype).expand(shape).contiguous()


def _time_attention(bench: Bench, precision: str, shapes: Sequence[Dims]) -> dict[str, list[Sample]]:
    """Samples of both phases; heads lie beside each other in memory, as a projection leaves them."""
    actions: list[Action] = []
    for dims in shapes:
        batch, heads, queries, keys, size = map(int, dims)
        q, k, v = (
            _numbers((batch, length, heads, size), TORCH_DTYPES[precision], bench.device)
            .transpose(1, 2)
            .requires_grad_()
            for length in (queries, keys, keys)
        )
        actions += [_attention_forward(q, k, v), _attention_backward(q, k, v)]
    timings = [timing for start in range(0, len(actions), TURNS) for timing in bench.time(actions[start:][:TURNS])]
    return {
        kind: [sample(dims, timing) for dims, timing in zip(shapes, timings[offset::2], strict=True)]
        for offset, kind in enumerate(("attention_forward", "attention_backward"))
    }


def _attention_forward(q: Tensor, k: Tensor, v: Tensor) -> Action:
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=True)


def _attention_backward(q: Tensor, k: Tensor, v: Tensor) -> Action:
    output = scaled_dot_product_attention(q, k, v, is_causal=True)
    gradient = torch.ones_like(output)
    return lambda: torch.autograd.grad(output, (q, k, v), gradient, retain_graph=True)


def sample(dims: Dims, timing: Timing) -> Sample:
    """A Sample of `dims` from a timing."""
    return Sample(dims=dims, seconds=timing.seconds, spread_fraction=timing.spread_fraction)
