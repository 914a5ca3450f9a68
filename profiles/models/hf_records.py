"""Records of Hugging Face configurations, one per family: every field that is read, its type, its range and its rules.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import Field

from profiles.artifacts import STRICT
from profiles.inputs import limits
from profiles.inputs.ranges import Channels, Experts, Ffn, Heads, Hidden, Layers, Pixels, Positions, Vocabulary

Sizes = dict[str, float]
# A field that is wrong in the light of others, and the rule.
Broken: TypeAlias = Iterator[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Gpt2Config:
    """GPT-2: learned positions, biases, a feed-forward network of four times the hidden size unless it says another."""

    __pydantic_config__ = STRICT

    n_layer: Layers
    n_embd: Hidden
    n_head: Heads
    n_inner: Ffn | None = None
    n_positions: Positions
    vocab_size: Vocabulary
    tie_word_embeddings: bool = True

    def broken(self) -> Broken:
        """Rules between fields that do not hold."""
        if self.n_embd % self.n_head:
            yield "n_head", f"should divide n_embd, {self.n_embd}"

    @property
    def longest_sequence(self) -> int:
        """Tokens that the positions allow."""
        return self.n_positions

    @property
    def sizes(self) -> Sizes:
        """Fields of a Transformer."""
        return {
            "num_layers": self.n_layer,
            "hidden_size": self.n_embd,
            "ffn_size": self.n_inner or 4 * self.n_embd,
            "num_heads": self.n_head,
            "num_kv_heads": self.n_head,
            "head_dim": self.n_embd / self.n_head,
            "vocab_size": self.vocab_size,
            "learned_positions": self.n_positions,
            "tied": self.tie_word_embeddings,
            "biases": True,
        }


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Llama: rotary positions, a gated feed-forward network, keys shared by queries."""

    __pydantic_config__ = STRICT

    num_hidden_layers: Layers
    hidden_size: Hidden
    intermediate_size: Ffn
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: Hidden | None = None
    vocab_size: Vocabulary
    max_position_embeddings: Positions | None = None
    tie_word_embeddings: bool = False

    def broken(self) -> Broken:
        """Rules between fields that do not hold."""
        heads, hidden = self.num_attention_heads, self.hidden_size
        if self.head_dim is None and hidden % heads:
            yield "num_attention_heads", f"should divide hidden_size, {hidden}, where no head_dim is given"
        elif self.head_dim is None and hidden // heads % 2:
            yield "num_attention_heads", f"gives heads of {hidden // heads}: rotary positions need an even size"
        if self.head_dim is not None and self.head_dim % 2:
            yield "head_dim", "should be even: rotary positions turn pairs"
        yield from self._broken_sharing()

    def _broken_sharing(self) -> Broken:
        if self.num_key_value_heads is not None and self.num_attention_heads % self.num_key_value_heads:
            yield "num_key_value_heads", f"should divide num_attention_heads, {self.num_attention_heads}"

    @property
    def longest_sequence(self) -> int:
        """Tokens that the positions allow, and that one window of attention covers; 0 where nothing sets a limit."""
        limits_set = [limit for limit in (self.max_position_embeddings, self.window) if limit]
        return min(limits_set, default=0)

    @property
    def window(self) -> int | None:
        """Tokens that each token attends to at most, where that is limited: blocks attend to all that come before."""
        return None

    @property
    def sizes(self) -> Sizes:
        """Fields of a Transformer."""
        heads = self.num_attention_heads
        return {
            "num_layers": self.num_hidden_layers,
            "hidden_size": self.hidden_size,
            "ffn_size": self.intermediate_size,
            "num_heads": heads,
            "num_kv_heads": self.num_key_value_heads or heads,
            "head_dim": self.head_dim or self.hidden_size / heads,
            "vocab_size": self.vocab_size,
            "tied": self.tie_word_embeddings,
            "gated": True,
        }


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """Mistral: a window of attention, unless it is set to null."""

    sliding_window: Positions | None = 4096

    @property
    def window(self) -> int | None:
        """Tokens that each token attends to at most."""
        return self.sliding_window


@dataclass(frozen=True, kw_only=True)
class QwenConfig(LlamaConfig):
    """Qwen2 and Qwen3: a window of attention that is used where the configuration says so."""

    sliding_window: Positions | None = 4096
    use_sliding_window: bool = False

    @property
    def window(self) -> int | None:
        """Tokens that each token attends to at most."""
        return self.sliding_window if self.use_sliding_window else None


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(MistralConfig):
    """Mixtral: experts in every layer."""

    num_local_experts: Experts
    num_experts_per_tok: Experts
    sliding_window: Positions | None = None

    def broken(self) -> Broken:
        """Rules between fields that do not hold."""
        yield from super().broken()
        if self.num_experts_per_tok > self.num_local_experts:
            yield "num_experts_per_tok", f"should be at most num_local_experts, {self.num_local_experts}"

    @property
    def sizes(self) -> Sizes:
        """Fields of a Transformer."""
        return super().sizes | {
            "num_experts": self.num_local_experts,
            "experts_per_token": self.num_experts_per_tok,
            "expert_ffn_size": self.intermediate_size,
        }


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(QwenConfig):
    """Qwen3-MoE: experts in all layers but those that are named."""

    # As transformers 5 writes it.
    other_names: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}
    num_experts: Experts
    num_experts_per_tok: Experts
    moe_intermediate_size: Ffn
    mlp_only_layers: tuple[int, ...] | None = None

    def broken(self) -> Broken:
        """Rules between fields that do not hold."""
        yield from super().broken()
        if self.num_experts_per_tok > self.num_experts:
            yield "num_experts_per_tok", f"should be at most num_experts, {self.num_experts}"
        dense = self.mlp_only_layers or ()
        if len(set(dense)) < len(dense) or not set(dense) <= set(range(self.num_hidden_layers)):
            yield "mlp_only_layers", f"should name layers from 0 to {self.num_hidden_layers - 1}, each once"

    @property
    def sizes(self) -> Sizes:
        """Fields of a Transformer."""
        return super().sizes | {
            "num_experts": self.num_experts,
            "experts_per_token": self.num_experts_per_tok,
            "expert_ffn_size": self.moe_intermediate_size,
            "num_dense_layers": len(self.mlp_only_layers or ()),
        }


@dataclass(frozen=True, kw_only=True)
class DeepseekConfig(LlamaConfig):
    """DeepSeek-V2 and V3: latent attention, a few dense layers first, then experts of which some are always used."""

    n_routed_experts: Experts
    num_experts_per_tok: Experts
    moe_intermediate_size: Ffn
    n_shared_experts: Annotated[int, Field(ge=0, le=limits.EXPERTS)] | None = None
    first_k_dense_replace: Annotated[int, Field(ge=0, le=limits.LAYERS)] = 0
    q_lora_rank: Hidden | None = None
    kv_lora_rank: Hidden
    qk_nope_head_dim: Hidden
    qk_rope_head_dim: Hidden
    v_head_dim: Hidden

    def broken(self) -> Broken:
        """Rules between fields that do not hold; heads are of the sizes given, whatever the hidden size."""
        yield from self._broken_sharing()
        if self.qk_rope_head_dim % 2:
            yield "qk_rope_head_dim", "should be even: rotary positions turn pairs"
        if self.num_experts_per_tok > self.n_routed_experts:
            yield "num_experts_per_tok", f"should be at most n_routed_experts, {self.n_routed_experts}"
        if self.first_k_dense_replace > self.num_hidden_layers:
            yield "first_k_dense_replace", f"should be at most num_hidden_layers, {self.num_hidden_layers}"

    @property
    def sizes(self) -> Sizes:
        """Fields of a Transformer."""
        return super().sizes | {
            "num_experts": self.n_routed_experts,
            "experts_per_token": self.num_experts_per_tok,
            "expert_ffn_size": self.moe_intermediate_size,
            "shared_ffn_size": self.moe_intermediate_size * (self.n_shared_experts or 0),
            "num_dense_layers": self.first_k_dense_replace,
            "mla_q_lora": self.q_lora_rank or 0,
            "mla_kv_lora": self.kv_lora_rank,
            "mla_qk_nope": self.qk_nope_head_dim,
            "mla_qk_rope": self.qk_rope_head_dim,
            "mla_v": self.v_head_dim,
        }


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """ViT: square patches of square images, one answer for each, of as many labels as there are or are named."""

    __pydantic_config__ = STRICT

    num_hidden_layers: Layers
    hidden_size: Hidden
    intermediate_size: Ffn
    num_attention_heads: Heads
    head_dim: Hidden | None = None
    image_size: Pixels
    patch_size: Pixels
    num_channels: Channels
    num_labels: Vocabulary | None = None
    id2label: dict[str, Any] | None = None
    qkv_bias: bool = True

    def broken(self) -> Broken:
        """Rules between fields that do not hold."""
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            yield "num_attention_heads", f"should divide hidden_size, {self.hidden_size}, where no head_dim is given"
        if self.image_size % self.patch_size:
            yield "patch_size", f"should divide image_size, {self.image_size}: patches must cover the image"
