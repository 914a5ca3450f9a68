"""A transformer from its sizes alone: parameters by what splits them. Torch-free, for columns of models."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
# Kinds of layers: with a feed-forward network of its own, and with experts that tokens are routed to.
DENSE, ROUTED = "dense", "moe"
LAYER_KINDS = (DENSE, ROUTED)


# Without slots: what the laws ask for over and over is computed once.
@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Sizes of decoder-only transformers. Shapes: every field has one entry per model, as floats or flags.

    `ffn_size` is that of dense layers; a layer is a mixture of experts where `num_experts` > 0 and it is not among the
    first `num_dense_layers`. `mla_kv_lora` > 0 marks latent attention, `head_dim` is then unused. `window` is the
    length that every second layer's attention is limited to, 0 for none.

    Ignores: biases of some linears only (Qwen2's query, key and value), norms of single heads (Qwen3); fewer than one
    parameter in ten thousand of a real model. A router's correction bias is a buffer, no parameter.
    """

    num_layers: Array
    hidden_size: Array
    ffn_size: Array
    num_heads: Array
    num_kv_heads: Array
    head_dim: Array
    vocab_size: Array
    gated: Flags
    tied: Flags
    biases: Flags
    learned_positions: Array
    num_experts: Array
    experts_per_token: Array
    expert_ffn_size: Array
    shared_ffn_size: Array
    num_dense_layers: Array
    mla_q_lora: Array
    mla_kv_lora: Array
    mla_qk_nope: Array
    mla_qk_rope: Array
    mla_v: Array
    window: Array

    def take(self, index: NDArray[np.int64] | Flags) -> Transformer:
        """The models at `index`."""
        return Transformer(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def repeated(self, count: int) -> Transformer:
        """The first model `count` times, in memory once."""
        return replace(
            self,
            **{field.name: np.broadcast_to(getattr(self, field.name)[0], count) for field in fields(Transformer)},
        )

    @property
    def is_mla(self) -> Flags:
        """Whether attention is latent (MLA)."""
        return self.mla_kv_lora > 0

    @property
    def is_moe(self) -> Flags:
        """Whether there are layers with routed experts."""
        return self.num_experts > 0

    @cached_property
    def num_moe_layers(self) -> Array:
        """Layers with routed experts."""
        return np.where(self.is_moe, np.maximum(self.num_layers - self.num_dense_layers, 0), 0.0)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of layers that any of the models has; all layers of a kind are alike."""
        return tuple(kind for kind in LAYER_KINDS if np.any(self.num_of(kind) > 0))

    @property
    def first_position(self) -> int:
        """Where the first of its layers stands: the embedding is layer 0 of a plan."""
        return 1

    @property
    def num_positions(self) -> int:
        """Layers of a plan: embedding and head count."""
        return int(self.num_layers[0]) + 2

    @property
    def is_alike(self) -> bool:
        """Whether stages in the midst hold the same: all layers are alike but for those that lead."""
        return True

    @property
    def can_cut_anywhere(self) -> bool:
        """Whether a stage may begin at any of its layers."""
        return True

    def cut_near(self, bounds: tuple[int, ...]) -> tuple[int, ...]:
        """Where stages begin that should begin behind so many layers."""
        return bounds

    def shared_parameters(self, start: Array, stop: Array) -> Array:
        """Parameters that stages of some layers hold beside those of their layers; tied ends are told apart."""
        return np.zeros(np.shape(start))

    def can_recompute(self, kind: str) -> bool:
        """Whether recomputation covers layers of a kind."""
        return True

    def num_of(self, kind: str) -> Array:
        """Layers of a kind."""
        routed = self.num_moe_layers
        return routed if kind == ROUTED else self.num_layers - routed

    def num_before(self, kind: str, position: Array) -> Array:
        """Layers of a kind among the first `position` layers: dense ones lead. Shapes: broadcast."""
        dense = np.minimum(position, self.num_of(DENSE))
        return np.asarray(position - dense if kind == ROUTED else dense)

    def parameters_of(self, kind: str) -> tuple[Array, Array]:
        """Parameters of a layer of a kind: those that every token meets, and all routed experts'."""
        if kind == ROUTED:
            return self.moe_shared_parameters, self.expert_parameters
        return self.dense_layer_parameters, np.zeros_like(self.hidden_size)

    @property
    def qk_head_dim(self) -> Array:
        """Size of one query or key head."""
        return np.where(self.is_mla, self.mla_qk_nope + self.mla_qk_rope, self.head_dim)

    @property
    def v_head_dim(self) -> Array:
        """Size of one value head."""
        return np.where(self.is_mla, self.mla_v, self.head_dim)

    @property
    def attention_linears(self) -> list[tuple[str, Array, Array, str]]:
        """(name, inputs, outputs, how tensor parallelism splits it) of the attention's linears; size 0 where absent.

        Splits: "column" over outputs, "row" over inputs, "whole" not at all.
        Source: DeepSeek-V2 (arXiv 2405.04434) for latent attention.
        """
        h, heads, mla = self.hidden_size, self.num_heads, self.is_mla
        low_rank_q = mla & (self.mla_q_lora > 0)
        q_in = np.where(low_rank_q, self.mla_q_lora, h)
        qkv = np.where(mla, 0.0, (heads + 2 * self.num_kv_heads) * self.head_dim)
        zero = np.zeros_like(h)
        return [
            ("qkv", h, qkv, "column"),
            ("q_down", h, np.where(low_rank_q, self.mla_q_lora, zero), "whole"),
            ("q_up", q_in, np.where(mla, heads * self.qk_head_dim, zero), "column"),
            ("kv_down", h, np.where(mla, self.mla_kv_lora + self.mla_qk_rope, zero), "whole"),
            (
                "kv_up",
                np.maximum(self.mla_kv_lora, 1.0),
                np.where(mla, heads * (self.mla_qk_nope + self.mla_v), zero),
                "column",
            ),
            ("projection", heads * self.v_head_dim, h, "row"),
        ]

    def feed_forward_linears(self, ffn_size: Array) -> list[tuple[str, Array, Array, str]]:
        """(name, inputs, outputs, split) of one feed-forward network; gate and up are one product, as fused."""
        widened = np.where(self.gated, 2.0, 1.0) * ffn_size
        return [("up", self.hidden_size, widened, "column"), ("down", ffn_size, self.hidden_size, "row")]

    def column_linears(self, kind: str) -> Array:
        """Linears of a layer of a kind that are split over their outputs, as models are written, nothing fused.

        Model: where the network is gated, queries, keys and values have a linear each (Llama), else one (GPT-2); latent
        attention has one that widens queries and one that widens keys and values. Of routed experts, none.
        """
        attention = np.where(self.is_mla, 2.0, np.where(self.gated, 3.0, 1.0))
        has_network = self.shared_ffn_size > 0 if kind == ROUTED else self.ffn_size > 0
        return attention + np.where(has_network, np.where(self.gated, 2.0, 1.0), 0.0)

    def num_matrices(self, kind: str) -> Array:
        """Matrices of a layer of a kind, as models are written, routed experts' left out."""
        has_network = self.shared_ffn_size > 0 if kind == ROUTED else self.ffn_size > 0
        rows = 1.0 + np.where(has_network, 1.0, 0.0)
        whole = np.where(self.is_mla, 1.0 + (self.mla_q_lora > 0), 0.0)
        return self.column_linears(kind) + rows + whole

    @cached_property
    def attention_parameters(self) -> Array:
        """Weights and biases of one layer's attention, norms excluded."""
        total = np.zeros_like(self.hidden_size)
        for _, inputs, outputs, _ in self.attention_linears:
            total = total + inputs * outputs + np.where(self.biases, outputs, 0.0)
        return total

    def feed_forward_parameters(self, ffn_size: Array) -> Array:
        """Weights and biases of one feed-forward network of `ffn_size`."""
        total = np.zeros_like(self.hidden_size)
        for _, inputs, outputs, _ in self.feed_forward_linears(ffn_size):
            total = total + inputs * outputs + np.where(self.biases & (ffn_size > 0), outputs, 0.0)
        return total

    @cached_property
    def norm_parameters(self) -> Array:
        """Parameters of one layer's norms: two, of a weight each, and a bias where the model has biases."""
        latent = np.where(self.is_mla, self.mla_q_lora + self.mla_kv_lora, 0.0)
        return 2 * self.hidden_size * np.where(self.biases, 2.0, 1.0) + latent

    @cached_property
    def dense_layer_parameters(self) -> Array:
        """Parameters of a dense layer."""
        return self.attention_parameters + self.feed_forward_parameters(self.ffn_size) + self.norm_parameters

    @cached_property
    def expert_parameters(self) -> Array:
        """Parameters of all routed experts of one layer."""
        return self.num_experts * self.feed_forward_parameters(self.expert_ffn_size)

    @cached_property
    def moe_shared_parameters(self) -> Array:
        """Parameters of a mixture-of-experts layer that every token meets: attention, router, shared expert, norms."""
        router = self.num_experts * self.hidden_size
        shared = self.feed_forward_parameters(self.shared_ffn_size)
        return np.where(self.is_moe, self.attention_parameters + router + shared + self.norm_parameters, 0.0)

    @property
    def embedding_parameters(self) -> Array:
        """Parameters of the token embedding and learned positions."""
        return (self.vocab_size + self.learned_positions) * self.hidden_size

    @property
    def head_parameters(self) -> Array:
        """Parameters of the final norm and of the projection to the vocabulary where it is not tied."""
        norm = self.hidden_size * np.where(self.biases, 2.0, 1.0)
        return norm + np.where(self.tied, 0.0, self.vocab_size * self.hidden_size)

    @property
    def num_parameters(self) -> Array:
        """All parameters, tied ones once."""
        moe = self.num_moe_layers
        blocks = (self.num_layers - moe) * self.dense_layer_parameters
        blocks = blocks + moe * (self.moe_shared_parameters + self.expert_parameters)
        return blocks + self.embedding_parameters + self.head_parameters

    @property
    def linear_sizes(self) -> tuple[float, float]:
        """Weights of all linears of the first model's layers, and their rows and columns together."""
        linears = [*self.attention_linears, *self.feed_forward_linears(self.ffn_size)]
        sizes = [(inputs[0], outputs[0]) for _, inputs, outputs, _ in linears if inputs[0] and outputs[0]]
        count = float(self.num_layers[0])
        weights = count * sum(inputs * outputs for inputs, outputs in sizes)
        return float(weights), float(count * sum(inputs + outputs for inputs, outputs in sizes))

    def flops_per_sample(self, sequence: int) -> float:
        """FLOPs that a training step of the first model must do for a sample: three times forward, full attention."""
        attention = 2 * sequence * self.num_heads[0] * (self.qk_head_dim[0] + self.v_head_dim[0])
        per_token = 2 * self.active_matmul_parameters[0] + attention * self.num_layers[0]
        return float(3 * per_token * sequence)

    @property
    def active_matmul_parameters(self) -> Array:
        """Weights that a token is multiplied with: routed experts in use only, the head, no embedding."""
        moe = self.num_moe_layers
        attention = _weights(self.attention_linears)
        dense = attention + _weights(self.feed_forward_linears(self.ffn_size))
        sparse = attention + self.num_experts * self.hidden_size
        sparse = sparse + _weights(self.feed_forward_linears(self.shared_ffn_size))
        sparse = sparse + self.experts_per_token * _weights(self.feed_forward_linears(self.expert_ffn_size))
        return (self.num_layers - moe) * dense + moe * sparse + self.vocab_size * self.hidden_size


def _weights(linears: list[tuple[str, Array, Array, str]]) -> Array:
    """Weights of linears, without their biases."""
    total = np.zeros_like(linears[0][1])
    for _, inputs, outputs, _ in linears:
        total = total + inputs * outputs
    return total
