"""What one micro-batch costs on one rank, layer by layer: seconds of products, bytes of everything memory-bound.

Kernels are priced at the shapes a rank has. Nothing here knows of overlap, pipelines or the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.adapted import is_frozen
from planner.cost.adapter_work import adapter_load, spared_load, unpacked_bytes
from planner.cost.axes.context import exchanges_heads
from planner.cost.element_passes import JOINED_GRADIENT, ElementPasses, element_passes
from planner.cost.hardware import attention_kernels, linear_precisions, silicon_of, silicon_where, wide_precisions
from planner.cost.job import Jobs
from planner.cost.load import Load, Work, load_of
from planner.cost.low_precision import PADDED_PASSES, converted_bytes, lowers_experts, relative_rate, weight_conversions
from planner.cost.vocabulary import padded_vocabulary
from profiles.laws.attention import attention_seconds
from profiles.laws.kernels import ACCUMULATED_BYTES, Silicon, grouped_matmul_seconds, is_aligned, matmul_seconds
from profiles.models.operators import PHASES, Phase
from profiles.models.transformer import DENSE, ROUTED, Array, Flags

# Softmax reads and writes the scores, dropout as well; its mask is half a pass.
SCORE_PASSES = (4.0, 4.5)
# Permuting to experts and back, sorting by local expert, weighting by the router: passes of the routed copies, which
# every stack does with fused kernels.
ROUTING_PASSES = (6.0, 7.0)
# Of both products of a linear's backward pass that of the weight's gradient is half.
OF_WEIGHTS = (0.0, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shapes:
    """What the pieces share: token counts of a rank, degrees, devices in both precisions, passes of operators.

    `converted` are bytes to convert an element of an operand of the linears, `conversions` how often a micro-batch
    converts the weights.
    """

    jobs: Jobs
    low: Silicon
    wide: Silicon
    passes: ElementPasses
    width: Array
    tokens: Array
    spread: Array  # tokens of norms and residuals: split as well with sequence parallelism
    converted: Array
    conversions: Array
    lowers_experts: Flags
    gradient_bytes: Array  # what an element of a weight's gradient moves in its product
    trains: Array  # 1 where the model's own weights have gradients, else 0
    unpacked: Array  # bytes moved to widen a stored weight, each time that it is used
    apart: Flags  # linears that read the same are kernels of their own, where the model has several


def work_of(jobs: Jobs) -> Work:
    """The work of every part of the model. Shapes: one entry per job in every array."""
    wide = silicon_of(jobs, wide_precisions(jobs))
    low = silicon_of(jobs, linear_precisions(jobs))
    low = replace(low, achievable_fraction=low.achievable_fraction * relative_rate(jobs))
    shapes = _Shapes(
        jobs=jobs,
        low=low,
        wide=wide,
        passes=element_passes(jobs),
        width=wide.element_bytes,
        tokens=jobs.tokens,
        spread=jobs.tokens / np.where(jobs.sequence_parallel, jobs.tensor, 1.0),
        converted=converted_bytes(jobs),
        conversions=weight_conversions(jobs),
        lowers_experts=lowers_experts(jobs),
        gradient_bytes=_gradient_bytes(jobs, wide),
        trains=np.where(is_frozen(jobs), 0.0, 1.0),
        unpacked=unpacked_bytes(jobs),
        apart=(jobs.stack.read(lambda stack: float(stack.time.linears_apart)) > 0) & jobs.model.gated,
    )
    attention = {phase: _attention(shapes, phase) for phase in PHASES}
    networks: dict[str, Callable[[Phase], Load]] = {
        DENSE: lambda phase: _feed_forward(shapes, phase) + adapter_load(jobs, wide, shapes.passes, DENSE, phase),
        ROUTED: lambda phase: _experts(shapes, phase) + adapter_load(jobs, wide, shapes.passes, ROUTED, phase),
    }
    return Work(
        layers={
            kind: {phase: attention[phase] + networks[kind](phase) for phase in PHASES} for kind in jobs.model.kinds
        },
        embedding={phase: _embedding(shapes, phase) for phase in PHASES},
        head={phase: _head(shapes, phase) for phase in PHASES},
        core=_core(shapes, "forward"),
    )


def _gradient_bytes(jobs: Jobs, silicon: Silicon) -> Array:
    """Bytes that pass for an element of a weight's gradient: added to what stands there, or as the product gives it."""
    adds_up = jobs.stack.read(lambda stack: float(stack.time.adds_up_in_products)) > 0
    added = np.where(jobs.gradient_bytes > 0, 2 * jobs.gradient_bytes, ACCUMULATED_BYTES)
    return np.where(adds_up, added, silicon.element_bytes)


def _at(phase: Phase, pair: tuple[float, float]) -> float:
    return pair[0] if phase == "forward" else pair[1]


def _linear(shapes: _Shapes, tokens: Array, inputs: Array, outputs: Array, phase: Phase, wide: bool = False) -> Load:
    """One linear of `inputs` by `outputs` on `tokens` rows; backward has the two products of its gradients."""
    silicon = shapes.wide if wide else shapes.low
    aligned = is_aligned(inputs, silicon) & is_aligned(outputs, silicon)
    if phase == "forward":
        seconds = matmul_seconds(tokens, outputs, inputs, "TN", silicon, aligned=aligned)
        converted = tokens * inputs + inputs * outputs * shapes.conversions
    else:
        seconds = matmul_seconds(tokens, inputs, outputs, "NN", silicon, aligned=aligned)
        of_weight = matmul_seconds(
            outputs, inputs, tokens, "NT", silicon, result_bytes=shapes.gradient_bytes, aligned=aligned
        )
        seconds = seconds + of_weight * shapes.trains
        converted = tokens * outputs
    moved = converted * shapes.converted + inputs * outputs * shapes.unpacked
    converted_bytes = np.where((inputs > 0) & (outputs > 0) & ~np.bool_(wide), moved, 0.0)
    biased = np.where(shapes.jobs.model.biases & ~np.bool_(wide), shapes.passes.of("bias", phase), 0.0)
    return load_of(
        seconds,
        matmul_seconds=seconds,
        weight_seconds=seconds * (shapes.trains * _at(phase, OF_WEIGHTS)),
        converted_bytes=converted_bytes,
        element_bytes=tokens * outputs * biased * shapes.width,
    )


def _moved(shapes: _Shapes, elements: Array) -> Load:
    """Memory-bound work on `elements` of activations, each pass counted."""
    return load_of(elements, element_bytes=elements * shapes.width)


def _normed(shapes: _Shapes, phase: Phase, num_readers: int = 1, has_residual: bool = True) -> Load:
    """A norm and the residual behind its block, on the hidden states that a rank holds between its linears.

    Of software whose linears stand apart, `num_readers` of them read what the norm gives.
    """
    passes = shapes.passes.of("norm", phase) + (shapes.passes.of("residual", phase) if has_residual else 0.0)
    passes = passes + np.where(shapes.apart, (num_readers - 1) * _at(phase, JOINED_GRADIENT), 0.0)
    return _moved(shapes, shapes.spread * shapes.jobs.model.hidden_size * passes)


def _core(shapes: _Shapes, phase: Phase) -> Load:
    """Attention itself: scores, softmax, weighted values; without a fused kernel the scores pass through memory.

    Model: context-parallel ranks exchange tokens for heads where the software does, else each has a part of the tokens.
    """
    jobs, model = shapes.jobs, shapes.jobs.model
    exchanges = exchanges_heads(jobs)
    heads = model.num_heads / jobs.tensor / np.where(exchanges, jobs.context, 1.0)

    kernels = attention_kernels(jobs)

    def seconds(keys: Array) -> Array:
        result = np.zeros(len(jobs))
        for kernel in np.unique(kernels):
            part = np.where(
                kernels == kernel,
                attention_seconds(
                    phase,
                    str(kernel),
                    jobs.micro_batch,
                    heads,
                    jobs.sequence,
                    keys,
                    model.qk_head_dim,
                    model.v_head_dim,
                    shapes.wide,
                ),
                0.0,
            )  # fmt: skip
            result = result + part
        return result

    full = seconds(jobs.sequence)
    if np.any(model.window > 0):
        limited = seconds(np.minimum(jobs.sequence, np.where(model.window > 0, 2 * model.window, jobs.sequence)))
        full = np.where(model.window > 0, (full + limited) / 2, full)
    share = np.where(exchanges, 1.0, jobs.context)
    scores = jobs.micro_batch * heads * jobs.sequence**2 / share
    unfused = np.where(kernels == "unfused", scores * _at(phase, SCORE_PASSES), 0.0)
    return load_of(scores, attention_seconds=full / share, score_bytes=unfused * shapes.width)


def _attention(shapes: _Shapes, phase: Phase) -> Load:
    """Norm, projections, attention, residual of one layer."""
    jobs, model = shapes.jobs, shapes.jobs.model
    rotated = shapes.tokens * (model.num_heads + model.num_kv_heads) * model.qk_head_dim / jobs.tensor
    rotated = np.where(model.learned_positions > 0, 0.0, rotated)
    load = _core(shapes, phase) + _normed(shapes, phase, num_readers=3)
    load = load + _moved(shapes, rotated * shapes.passes.of("rotation", phase))
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    for name, inputs, outputs, split in model.attention_linears:
        rows = shapes.spread if split == "whole" else shapes.tokens
        inputs = inputs / np.where(split == "row", jobs.tensor, 1.0)
        outputs = outputs / np.where(split == "column", jobs.tensor, 1.0)
        own = _linear(shapes, rows, inputs, outputs, phase)
        if name == "qkv" and np.any(shapes.apart):
            parts = [np.where(outputs > 0, size / jobs.tensor, 0.0) for size in (heads, kv_heads, kv_heads)]
            own = _apart(shapes, own, [_linear(shapes, rows, inputs, part, phase) for part in parts])
        load = load + own
    return load


def _apart(shapes: _Shapes, fused: Load, parts: list[Load]) -> Load:
    """A product, or its parts one by one where the software has a linear for each."""
    total = sum(parts[1:], parts[0])
    return Load(**{name: np.where(shapes.apart, getattr(total, name), getattr(fused, name)) for name in Load.__slots__})


def _feed_forward(shapes: _Shapes, phase: Phase) -> Load:
    """Norm, feed-forward network, residual of one dense layer."""
    ffn_size = shapes.jobs.model.ffn_size / shapes.jobs.tensor
    return _network(shapes, shapes.tokens, ffn_size, phase) + _normed(shapes, phase, num_readers=2)


def _network(shapes: _Shapes, tokens: Array, ffn_size: Array, phase: Phase) -> Load:
    """The two linears and the activation between them."""
    model = shapes.jobs.model
    load = _moved(shapes, tokens * ffn_size * shapes.passes.of("activation", phase))
    for name, inputs, outputs, _ in model.feed_forward_linears(ffn_size):
        own = _linear(shapes, tokens, inputs, outputs, phase)
        if name == "up" and np.any(shapes.apart):
            own = _apart(shapes, own, [_linear(shapes, tokens, inputs, ffn_size, phase)] * 2)
        load = load + own
    return load


def _experts(shapes: _Shapes, phase: Phase) -> Load:
    """Router, routed experts under balanced load, shared expert, norm and residual of one mixture-of-experts layer."""
    jobs, model = shapes.jobs, shapes.jobs.model
    local = np.maximum(model.num_experts, 1.0) / jobs.expert
    unpacked = np.zeros(len(jobs))
    own = shapes.tokens / jobs.tensor
    routed = own * model.experts_per_token * jobs.expert_tensor
    ffn = model.expert_ffn_size / jobs.expert_tensor
    widened = ffn * np.where(model.gated, 2.0, 1.0)
    rows = routed / local
    seconds, converted = np.zeros(len(jobs)), np.zeros(len(jobs))
    silicon = silicon_where(shapes.lowers_experts, shapes.low, shapes.wide)
    for inputs, outputs in ((model.hidden_size, widened), (ffn, model.hidden_size)):
        if phase == "forward":
            seconds = seconds + grouped_matmul_seconds(local, rows, outputs, inputs, "TN", silicon)
            converted = converted + routed * inputs + local * inputs * outputs * shapes.conversions
        else:
            seconds = seconds + grouped_matmul_seconds(local, rows, inputs, outputs, "NN", silicon)
            of_weights = grouped_matmul_seconds(
                local, outputs, inputs, rows, "NT", silicon, result_bytes=shapes.gradient_bytes
            )
            seconds = seconds + of_weights * shapes.trains
            converted = converted + routed * outputs
        unpacked = unpacked + local * inputs * outputs * shapes.unpacked
    permuted = _at(phase, ROUTING_PASSES) + np.where(shapes.lowers_experts, PADDED_PASSES, 0.0)
    load = _moved(shapes, routed * ffn * shapes.passes.of("activation", phase)) + _normed(shapes, phase)
    load = load + _network(shapes, shapes.tokens, model.shared_ffn_size / jobs.tensor, phase)
    load = load + _linear(shapes, own, model.hidden_size, np.maximum(model.num_experts, 1.0), phase, wide=True)
    return load + load_of(
        seconds,
        matmul_seconds=seconds,
        weight_seconds=seconds * (shapes.trains * _at(phase, OF_WEIGHTS)),
        routed_bytes=routed * model.hidden_size * permuted * shapes.width,
        converted_bytes=converted * np.where(shapes.lowers_experts, shapes.converted, 0.0) + unpacked,
    )


def _embedding(shapes: _Shapes, phase: Phase) -> Load:
    """Looking tokens up; backward clears and fills a gradient of the whole table.

    A frozen one has none, and what would be given to it is not computed.
    """
    jobs, model, moved = shapes.jobs, shapes.jobs.model, 2 * shapes.spread * shapes.jobs.model.hidden_size
    if phase == "backward":
        moved = (moved + 2 * model.vocab_size * model.hidden_size / jobs.vocabulary_split) * shapes.trains
        return _moved(shapes, moved) + spared_load(jobs, shapes.low)
    return _moved(shapes, moved)


def _head(shapes: _Shapes, phase: Phase) -> Load:
    """Final norm, projection to the vocabulary and loss."""
    jobs, model = shapes.jobs, shapes.jobs.model
    outputs = padded_vocabulary(jobs) / jobs.vocabulary_split
    load = _linear(shapes, shapes.tokens, model.hidden_size, outputs, phase, wide=True)
    load = load + _normed(shapes, phase, has_residual=False)
    return load + load_of(outputs, logit_elements=shapes.tokens * outputs)
