"""What one layer keeps for backward, tensor by tensor, and what its backward needs on top of that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.adapted import pairs_of, trains_inputs
from planner.cost.job import Jobs
from planner.cost.software_memory import MemoryRules
from profiles.models.transformer import ROUTED, Array

STATISTIC_BYTES = 4.0
MASK_BYTES = 1.0
# Gradients of routed copies exist before and after their exchange, and sorted by expert.
EXCHANGED_COPIES = 3.0
# Of a number between the two matrices of an adapter.
ADAPTER_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """One layer, one micro-batch, one rank, bytes. Shapes: one entry per job.

    `kept` stays from forward to backward with the job's recomputation; `backward` is what the backward needs at its
    worst beside what all layers keep, recomputed tensors included; `attention` of these what is there still when the
    feed-forward network has gone backward.
    """

    kept: Array
    backward: Array
    attention: Array


@dataclass(frozen=True, slots=True)
class Saved:
    """One kept tensor: its bytes, and the shares that selective and full recomputation keep of it.

    `core`: share kept where attention's core alone is recomputed; `operators`: where every second product is.
    """

    name: str
    num_bytes: Array
    core: float = 1.0
    operators: float = 0.0
    full: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Tokens of one micro-batch that a rank has of tensors by region. Shapes: one entry per job.

    `sequence`: between the tensor-parallel linears; `gathered`: inputs of their first linears; `whole`: inside of them,
    where heads or columns are split and not tokens; `routed`: copies that a rank's experts work on.
    """

    sequence: Array
    gathered: Array
    whole: Array
    routed: Array


def token_shares(jobs: Jobs, rules: MemoryRules) -> Shares:
    """Tokens by region.

    Model: sequence parallelism splits tokens over tensor ranks; routing is balanced, so that a rank works on as many
    copies as its own tokens make, times its share of experts' columns.
    """
    tokens = jobs.tokens
    split = np.where(jobs.sequence_parallel, jobs.tensor, 1.0)
    sequence = tokens / split
    copies = tokens / jobs.tensor * np.maximum(jobs.model.experts_per_token, 0.0) * jobs.expert_tensor
    return Shares(
        sequence=sequence,
        gathered=np.where(rules.keeps_gathered, tokens, sequence),
        whole=tokens,
        routed=copies,
    )


def layer_memory(jobs: Jobs, rules: MemoryRules, kind: str) -> LayerMemory:
    """Bytes that a layer of a kind keeps.

    Source: Korthikanti et al. 2022 (arXiv 2205.05198) for what linears, norms and attention keep; fused modules by
    their documentation; differences between published runs that differ in one thing.
    """
    routed = kind == ROUTED
    after_attention = routed_tensors(jobs, rules) if routed else dense_tensors(jobs, rules)
    tensors = attention_tensors(jobs, rules) + after_attention + _adapter_tensors(jobs, kind)
    zero = np.zeros(len(jobs))
    everything = sum((tensor.num_bytes for tensor in tensors), zero)
    core = sum((tensor.num_bytes * tensor.core for tensor in tensors), zero)
    operators = sum((tensor.num_bytes * tensor.operators for tensor in tensors), zero)
    # The last product of a layer is kept as well where it is chosen by operator.
    operators = operators + token_shares(jobs, rules).sequence * jobs.model.hidden_size * rules.element_bytes
    full = sum((tensor.num_bytes * tensor.full for tensor in tensors), zero)
    selective = np.minimum(np.where(rules.selective_by_operator, operators, core), everything)
    is_full, is_selective = jobs.recompute == "full", jobs.recompute == "selective"
    kept = np.where(is_full, full, np.where(is_selective, selective, everything))
    kept = np.where(jobs.recompute == "partial", everything - jobs.recompute_freed * (everything - full), kept)
    # A stage needs again what one of its recomputed layers did not keep, and no more than all of them.
    free = (everything - kept) * np.minimum(jobs.recompute_share * jobs.model.num_layers / jobs.pipeline, 1.0)
    kept = np.where(jobs.recompute_share < 1, everything - jobs.recompute_share * (everything - kept), kept)
    gradients = backward_bytes(jobs, rules, after_attention, routed=routed)
    attention = sum((tensor.num_bytes for tensor in attention_tensors(jobs, rules)), zero)
    return LayerMemory(kept=kept, backward=free + gradients, attention=np.maximum(attention - kept, 0.0))


def attention_tensors(jobs: Jobs, rules: MemoryRules) -> list[Saved]:
    """What norm, projections and attention keep.

    Model: the residual stream, its norm, queries, keys, values, attention's output and its row statistics. Unfused
    attention keeps its scores' softmax, and with dropout a mask and the dropped scores.
    """
    model, shares, size, low = jobs.model, token_shares(jobs, rules), rules.element_bytes, rules.input_bytes
    heads = model.num_heads / jobs.tensor
    kv_heads = _kv_heads(jobs)
    query = shares.whole * heads * model.qk_head_dim * size
    key = shares.whole * kv_heads * model.qk_head_dim * size
    value = shares.whole * kv_heads * model.v_head_dim * size
    output = shares.whole * heads * model.v_head_dim * size
    # Rotation makes new queries and keys; the packed product stays where values are a view into it.
    rotated = np.where(rules.keeps_packed_qkv & (model.learned_positions == 0), query + key, 0.0)
    copies = rules.attention_output_copies + np.where(jobs.context > 1, rules.context_output_copies, 0.0)
    copies = copies + np.where(low < size, low / size, 0.0)
    latent = np.where(model.is_mla, model.mla_q_lora + model.mla_kv_lora, 0.0)
    return [
        Saved("input", shares.sequence * model.hidden_size * size, operators=1.0, full=1.0),
        Saved("norm", shares.gathered * model.hidden_size * low * trains_inputs(jobs, "q", "k", "v")),
        Saved("norm copies", shares.sequence * model.hidden_size * rules.norm_extra_bytes),
        Saved("query", query, operators=1.0),
        Saved("key", key),
        Saved("value", value, operators=1.0),
        Saved("rotated", rotated),
        Saved("latent", shares.sequence * latent * (size + low)),
        Saved("output", output, operators=1.0),
        Saved("output copies", output * copies),
        *_score_tensors(jobs, rules, shares.whole * heads),
        Saved("dropout", shares.sequence * model.hidden_size * np.where(rules.keeps_dropout_masks, MASK_BYTES, 0.0)),
    ]


def _score_tensors(jobs: Jobs, rules: MemoryRules, rows: Array) -> list[Saved]:
    """Of scores: row statistics of fused kernels, or all scores."""
    is_unfused = jobs.attention_kernel == "unfused"
    per_score = rules.element_bytes + np.where(rules.keeps_dropout_masks, MASK_BYTES + rules.element_bytes, 0.0)
    return [
        Saved("statistics", np.where(is_unfused, 0.0, rows * STATISTIC_BYTES), core=0.0, operators=1.0),
        Saved("scores", np.where(is_unfused, rows * jobs.sequence * per_score, 0.0), core=0.0),
    ]


def _adapter_tensors(jobs: Jobs, kind: str) -> list[Saved]:
    """What adapters keep beside their linears' inputs: those of their second matrices."""
    ranks = [pair.rank for pair in pairs_of(jobs, kind)]
    return [Saved("adapters", jobs.tokens * sum(ranks) * ADAPTER_BYTES)] if ranks else []


def _feed_forward(
    jobs: Jobs, rules: MemoryRules, tokens: Array, ffn_size: Array, name: str, trains: Array
) -> list[Saved]:
    """Inside a feed-forward network: what the activation keeps, and the second linear's input if that `trains`.

    Model: a gated activation keeps gate and up, unfused its sigmoid-weighted gate too.
    """
    size = rules.element_bytes
    spelled_out = np.where(jobs.model.gated & ~rules.fused_activation, 1.0, 0.0)
    widths = np.where(jobs.model.gated, 2.0, 1.0)
    return [
        Saved(f"{name} up", tokens * ffn_size * widths * size, operators=0.5),
        Saved(f"{name} gate", tokens * ffn_size * spelled_out * size),
        Saved(f"{name} product", tokens * ffn_size * rules.input_bytes * trains),
    ]


def _second_norm(jobs: Jobs, rules: MemoryRules) -> list[Saved]:
    model, shares = jobs.model, token_shares(jobs, rules)
    return [
        Saved("second input", shares.sequence * model.hidden_size * rules.element_bytes),
        Saved(
            "second norm",
            shares.gathered * model.hidden_size * rules.input_bytes * trains_inputs(jobs, "gate", "up"),
        ),
        Saved("second norm copies", shares.sequence * model.hidden_size * rules.norm_extra_bytes),
    ]


def dense_tensors(jobs: Jobs, rules: MemoryRules) -> list[Saved]:
    """What the second norm and a dense feed-forward network keep."""
    model, shares = jobs.model, token_shares(jobs, rules)
    mask = np.where(rules.keeps_dropout_masks, MASK_BYTES, 0.0)
    return [
        *_second_norm(jobs, rules),
        *_feed_forward(jobs, rules, shares.whole, model.ffn_size / jobs.tensor, "ffn", trains_inputs(jobs, "down")),
        Saved("second dropout", shares.sequence * model.hidden_size * mask),
    ]


def routed_tensors(jobs: Jobs, rules: MemoryRules) -> list[Saved]:
    """What the second norm, router, shared and routed experts keep.

    Model: router probabilities and their softmax in fp32; a copy of each token per expert that it goes to.
    """
    model, shares = jobs.model, token_shares(jobs, rules)
    trains = trains_inputs(jobs)
    scores = shares.sequence * (2 * model.num_experts + 2 * model.experts_per_token) * STATISTIC_BYTES
    return [
        *_second_norm(jobs, rules),
        Saved("router", scores),
        *_feed_forward(
            jobs, rules, shares.whole, model.shared_ffn_size / jobs.tensor, "shared", trains_inputs(jobs, "down")
        ),
        Saved("dispatched", shares.routed * model.hidden_size * rules.input_bytes * trains),
        *_feed_forward(jobs, rules, shares.routed, model.expert_ffn_size / jobs.expert_tensor, "experts", trains),
        # Weighted by the router; compiled and fused kernels do that before the second product.
        Saved("answers", shares.routed * model.hidden_size * np.where(rules.experts_in_turns, rules.element_bytes, 0)),
    ]


def backward_bytes(jobs: Jobs, rules: MemoryRules, after_attention: list[Saved], *, routed: bool) -> Array:
    """Bytes of gradients that one layer's backward holds at its worst, beside what is kept.

    Model: the residual stream's gradient, and the larger of two moments: in the feed-forward network the gradients of
    gate and up, and of routed copies; in attention those of output, queries, keys and values with fp32 sums of the
    queries', when what was kept `after_attention` is free again.
    """
    model, shares, size = jobs.model, token_shares(jobs, rules), rules.element_bytes
    widths = np.where(model.gated, np.where(rules.fused_activation, 2.0, 3.0), 1.0)
    heads = model.num_heads / jobs.tensor
    moved = (heads + _kv_heads(jobs)) * (model.v_head_dim + model.qk_head_dim)
    attention = shares.whole * (moved * size + heads * model.qk_head_dim * STATISTIC_BYTES)
    is_unfused = jobs.attention_kernel == "unfused"
    attention = attention + np.where(is_unfused, 2 * size * shares.whole * heads * jobs.sequence, 0.0)
    free = np.asarray(sum((tensor.num_bytes for tensor in after_attention), np.zeros(len(jobs))))
    if routed:
        own = widths * model.expert_ffn_size / jobs.expert_tensor
        together = np.maximum(model.hidden_size + own, EXCHANGED_COPIES * model.hidden_size)
        # One expert after another, between gradients of what all of them gave and were given, and of their exchange.
        ends = model.hidden_size * np.where(jobs.expert > 1, 4.0, 2.0)
        in_turns = ends + own * jobs.expert / np.maximum(model.num_experts, 1.0)
        inside = shares.routed * np.where(rules.experts_in_turns, in_turns, together) * size
    else:
        inside = shares.whole * widths * model.ffn_size / jobs.tensor * size
    # Of a base in few bits the largest matrix is wide while it is worked with.
    stored = jobs.adapters.read(lambda one: one.base_bytes) > 0
    split = jobs.expert_tensor if routed else jobs.tensor
    widest = model.hidden_size * np.maximum(model.expert_ffn_size if routed else model.ffn_size, model.hidden_size)
    unpacked = np.where(stored, widest / split * size, 0.0)
    return unpacked + shares.sequence * model.hidden_size * size + np.maximum(inside, np.maximum(attention - free, 0.0))


def _kv_heads(jobs: Jobs) -> Array:
    """Key and value heads of one rank."""
    model = jobs.model
    shared = np.maximum(model.num_kv_heads / jobs.tensor, 1.0)
    return np.where(model.is_mla, model.num_heads / jobs.tensor, shared)
