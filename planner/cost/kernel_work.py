"""What one micro-batch costs on one rank, layer by layer: seconds of products, bytes of everything memory-bound.

Kernels are priced at the shapes a rank has. Nothing here knows of overlap, pipelines or the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.cost.axes.context import exchanges_heads, imbalance
from planner.cost.hardware import linear_precisions, silicon_of, wide_precisions
from planner.cost.job import Jobs
from planner.cost.vocabulary import padded_vocabulary
from profiles.laws.kernels import (
    ACCUMULATED_BYTES,
    Silicon,
    attention_seconds,
    grouped_matmul_seconds,
    is_aligned,
    matmul_seconds,
)
from profiles.models.operators import PHASES, Phase
from profiles.models.transformer import DENSE, ROUTED, Array, Flags

# Reads and writes of one activation by kernels that fuse what Megatron's do: (forward, backward). A norm reads and
# writes; bias, dropout and residual are one kernel of two reads and a write; backward also adds the two branches up.
NORM_PASSES, RESIDUAL_PASSES, ROTARY_PASSES = (2.0, 3.0), (3.0, 3.0), (2.0, 2.0)
PLAIN_ACTIVATION_PASSES, GATED_ACTIVATION_PASSES = (2.0, 3.0), (3.0, 5.0)
# Softmax reads and writes the scores, dropout as well; its mask is half a pass.
SCORE_PASSES = (4.0, 4.5)
# Permuting to experts and back, sorting by local expert, weighting by the router: passes of the routed copies.
ROUTING_PASSES = (6.0, 7.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Work of one phase of one layer on one rank.

    Seconds of products and of fused attention, each alone on the device; bytes that pass through memory besides, apart
    by what a stack's fusion changes: norms and residuals, other activations, attention scores, logits (elements),
    operands converted to low precision (elements).
    """

    matmul_seconds: Array
    attention_seconds: Array
    norm_bytes: Array
    activation_bytes: Array
    score_bytes: Array
    logit_elements: Array
    copied_elements: Array

    def __add__(self, other: Load) -> Load:
        return Load(**{name: getattr(self, name) + getattr(other, name) for name in Load.__slots__})

    @property
    def products(self) -> Load:
        """Its products and its attention, without what passes through memory besides."""
        return _load(self.matmul_seconds, matmul_seconds=self.matmul_seconds, attention_seconds=self.attention_seconds)


def _load(like: Array, **fields: Array) -> Load:
    """A load of the `fields` given and nothing else."""
    zero = np.zeros_like(like)
    return Load(**{name: fields.get(name, zero) for name in Load.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Loads per micro-batch and rank by kind of layer and phase; `core` is what selective recomputation repeats."""

    layers: dict[str, dict[Phase, Load]]
    embedding: dict[Phase, Load]
    head: dict[Phase, Load]
    core: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shapes:
    """What the pieces share: token counts of a rank, degrees, devices in both precisions."""

    jobs: Jobs
    low: Silicon
    wide: Silicon
    width: Array
    tokens: Array
    spread: Array  # tokens of norms and residuals: split as well with sequence parallelism
    is_low: Flags
    gradient_bytes: Array  # what an element of a weight's gradient moves in its product
    apart: Flags  # linears that read the same are kernels of their own, where the model has several


def work_of(jobs: Jobs) -> Work:
    """The work of every part of the model. Shapes: one entry per job in every array."""
    wide = silicon_of(jobs, wide_precisions(jobs))
    low = silicon_of(jobs, linear_precisions(jobs))
    shapes = _Shapes(
        jobs=jobs,
        low=low,
        wide=wide,
        width=wide.element_bytes,
        tokens=jobs.tokens,
        spread=jobs.tokens / np.where(jobs.sequence_parallel, jobs.tensor, 1.0),
        is_low=low.element_bytes < wide.element_bytes,
        gradient_bytes=_gradient_bytes(jobs, wide),
        apart=(jobs.stack.read(lambda stack: float(stack.time.linears_apart)) > 0) & jobs.model.gated,
    )
    attention = {phase: _attention(shapes, phase) for phase in PHASES}
    networks: dict[str, Callable[[Phase], Load]] = {
        DENSE: lambda phase: _feed_forward(shapes, jobs.model.ffn_size, phase),
        ROUTED: lambda phase: _experts(shapes, phase),
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
    """Bytes that pass for an element of a weight's gradient: added to that of fp32, or as the product gives it."""
    adds_up = jobs.stack.read(lambda stack: float(stack.time.adds_up_in_products)) > 0
    return np.where(adds_up, ACCUMULATED_BYTES, silicon.element_bytes)


def _at(phase: Phase, pair: tuple[float, float]) -> float:
    return pair[0] if phase == "forward" else pair[1]


def _linear(shapes: _Shapes, tokens: Array, inputs: Array, outputs: Array, phase: Phase, wide: bool = False) -> Load:
    """One linear of `inputs` by `outputs` on `tokens` rows; backward has the two products of its gradients."""
    silicon = shapes.wide if wide else shapes.low
    aligned = is_aligned(inputs, silicon) & is_aligned(outputs, silicon)
    if phase == "forward":
        seconds = matmul_seconds(tokens, outputs, inputs, "TN", silicon, aligned=aligned)
        converted = tokens * inputs
    else:
        seconds = matmul_seconds(tokens, inputs, outputs, "NN", silicon, aligned=aligned)
        of_weight = matmul_seconds(
            outputs, inputs, tokens, "NT", silicon, result_bytes=shapes.gradient_bytes, aligned=aligned
        )
        seconds = seconds + of_weight
        converted = tokens * outputs
    copied = np.where(shapes.is_low & ~np.bool_(wide), converted, 0.0)
    return _load(seconds, matmul_seconds=seconds, copied_elements=copied)


def _moved(shapes: _Shapes, elements: Array) -> Load:
    """Memory-bound work on `elements` of activations, each pass counted."""
    return _load(elements, activation_bytes=elements * shapes.width)


def _normed(shapes: _Shapes, passes: float) -> Load:
    """Norms and residuals on the hidden states that a rank holds between its linears."""
    elements = shapes.spread * shapes.jobs.model.hidden_size * passes
    return _load(elements, norm_bytes=elements * shapes.width)


def _core(shapes: _Shapes, phase: Phase) -> Load:
    """Attention itself: scores, softmax, weighted values; without a fused kernel the scores pass through memory.

    Model: context-parallel ranks exchange tokens for heads where the software does, else each has a part of the tokens.
    """
    jobs, model = shapes.jobs, shapes.jobs.model
    exchanges = exchanges_heads(jobs)
    heads = model.num_heads / jobs.tensor / np.where(exchanges, jobs.context, 1.0)

    def seconds(keys: Array) -> Array:
        result = np.zeros(len(jobs))
        for kernel in np.unique(jobs.attention_kernel):
            part = np.where(
                jobs.attention_kernel == kernel,
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
    share = np.where(exchanges, 1.0, jobs.context / imbalance(jobs))
    scores = jobs.micro_batch * heads * jobs.sequence**2 / share
    unfused = np.where(jobs.attention_kernel == "unfused", scores * _at(phase, SCORE_PASSES), 0.0)
    return _load(scores, attention_seconds=full / share, score_bytes=unfused * shapes.width)


def _attention(shapes: _Shapes, phase: Phase) -> Load:
    """Norm, projections, attention, residual of one layer."""
    jobs, model = shapes.jobs, shapes.jobs.model
    rotated = shapes.tokens * (model.num_heads + model.num_kv_heads) * model.qk_head_dim / jobs.tensor
    rotated = np.where(model.learned_positions > 0, 0.0, rotated)
    passes = _at(phase, NORM_PASSES) + _at(phase, RESIDUAL_PASSES)
    load = _core(shapes, phase) + _normed(shapes, passes) + _moved(shapes, rotated * _at(phase, ROTARY_PASSES))
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


def _feed_forward(shapes: _Shapes, ffn_size: Array, phase: Phase) -> Load:
    """Norm, feed-forward network, residual of one dense layer."""
    passes = _at(phase, NORM_PASSES) + _at(phase, RESIDUAL_PASSES)
    return _network(shapes, shapes.tokens, ffn_size / shapes.jobs.tensor, phase) + _normed(shapes, passes)


def _network(shapes: _Shapes, tokens: Array, ffn_size: Array, phase: Phase) -> Load:
    """The two linears and the activation between them."""
    model = shapes.jobs.model
    activation = np.where(model.gated, _at(phase, GATED_ACTIVATION_PASSES), _at(phase, PLAIN_ACTIVATION_PASSES))
    load = _moved(shapes, tokens * ffn_size * activation)
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
    own = shapes.tokens / jobs.tensor
    routed = own * model.experts_per_token * jobs.expert_tensor
    ffn = model.expert_ffn_size / jobs.expert_tensor
    widened = ffn * np.where(model.gated, 2.0, 1.0)
    rows = routed / local
    zero = np.zeros(len(jobs))
    seconds = zero
    for inputs, outputs in ((model.hidden_size, widened), (ffn, model.hidden_size)):
        if phase == "forward":
            seconds = seconds + grouped_matmul_seconds(local, rows, outputs, inputs, "TN", shapes.low)
        else:
            seconds = seconds + grouped_matmul_seconds(local, rows, inputs, outputs, "NN", shapes.low)
            seconds = seconds + grouped_matmul_seconds(
                local, outputs, inputs, rows, "NT", shapes.low, result_bytes=shapes.gradient_bytes
            )
    activation = np.where(model.gated, _at(phase, GATED_ACTIVATION_PASSES), _at(phase, PLAIN_ACTIVATION_PASSES))
    moved = routed * model.hidden_size * _at(phase, ROUTING_PASSES) + routed * ffn * activation
    passes = _at(phase, NORM_PASSES) + _at(phase, RESIDUAL_PASSES)
    load = _moved(shapes, moved) + _normed(shapes, passes)
    load = load + _network(shapes, shapes.tokens, model.shared_ffn_size / jobs.tensor, phase)
    load = load + _linear(shapes, own, model.hidden_size, np.maximum(model.num_experts, 1.0), phase, wide=True)
    return load + _load(seconds, matmul_seconds=seconds)


def _embedding(shapes: _Shapes, phase: Phase) -> Load:
    """Looking tokens up; backward clears and fills a gradient of the whole table."""
    jobs, model = shapes.jobs, shapes.jobs.model
    moved = 2 * shapes.spread * model.hidden_size
    if phase == "backward":
        moved = moved + 2 * model.vocab_size * model.hidden_size / jobs.vocabulary_split
    return _moved(shapes, moved)


def _head(shapes: _Shapes, phase: Phase) -> Load:
    """Final norm, projection to the vocabulary and loss."""
    jobs, model = shapes.jobs, shapes.jobs.model
    outputs = padded_vocabulary(jobs) / jobs.vocabulary_split
    load = _linear(shapes, shapes.tokens, model.hidden_size, outputs, phase, wide=True)
    load = load + _normed(shapes, _at(phase, NORM_PASSES))
    return load + _load(outputs, logit_elements=shapes.tokens * outputs)
