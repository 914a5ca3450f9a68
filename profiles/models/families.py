"""Transformer families as data: the paths of a block's linears, norms and attention, and how each is split.

Torch-free. A family of transformers whose blocks have these names needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Style = Literal["colwise", "colwise_qkv", "rowwise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPaths:
    """Where the parts of a block stand, by path from the layer.

    `norms` work on hidden states, `head_norms` on single heads; `gathers` are the modules that see whole sequences,
    each with the keyword of its hidden states ("" where they are its first argument); `attention` holds the core.
    """

    attention: str = ""
    norms: tuple[str, ...] = ()
    head_norms: tuple[str, ...] = ()
    gathers: dict[str, str] = field(default_factory=dict)

    @property
    def all_norms(self) -> tuple[str, ...]:
        """Both kinds."""
        return self.norms + self.head_norms


LLAMA_STYLE: dict[str, Style] = {
    "self_attn.q_proj": "colwise",
    "self_attn.k_proj": "colwise",
    "self_attn.v_proj": "colwise",
    "self_attn.o_proj": "rowwise",
    "mlp.gate_proj": "colwise",
    "mlp.up_proj": "colwise",
    "mlp.down_proj": "rowwise",
}
GPT2_STYLE: dict[str, Style] = {
    "attn.c_attn": "colwise_qkv",
    "attn.c_proj": "rowwise",
    "mlp.c_fc": "colwise",
    "mlp.c_proj": "rowwise",
}
VIT_STYLE: dict[str, Style] = {
    "attention.q_proj": "colwise",
    "attention.k_proj": "colwise",
    "attention.v_proj": "colwise",
    "attention.o_proj": "rowwise",
    "mlp.fc1": "colwise",
    "mlp.fc2": "rowwise",
}
# Families that read images, and give one answer for each.
VISION_FAMILIES = ("vit",)
# Families whose blocks have the names above and take rotary position embeddings.
LLAMA_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
# The same with experts in place of one feed-forward; nothing says yet how tensor parallel splits those.
EXPERT_FAMILIES = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe"}
# How classes end that are for other tasks than the blocks here are trained for.
OTHER_ENDINGS = (
    "ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "ForMultipleChoice",
)  # fmt: skip
# Families that can be built, traced and run; others are known by their sizes alone.
BUILT_FAMILIES = ("gpt2", *LLAMA_FAMILIES, *EXPERT_FAMILIES, *VISION_FAMILIES)
# Their norms of single queries and keys: every tensor-parallel rank norms its own heads with the same weights.
HEAD_NORMS = dict.fromkeys(("qwen3", "qwen3_moe"), ("block.self_attn.q_norm", "block.self_attn.k_norm"))

GPT2_PATHS = BlockPaths(
    attention="block.attn", norms=("block.ln_1", "block.ln_2"), gathers={"block.attn": "", "block.mlp": ""}
)

VIT_PATHS = BlockPaths(attention="block.attention", norms=("block.layernorm_before", "block.layernorm_after"))


def llama_paths(family: str) -> BlockPaths:
    """The paths of a block of one of `LLAMA_FAMILIES` or `EXPERT_FAMILIES`."""
    return BlockPaths(
        attention="block.self_attn",
        norms=("block.input_layernorm", "block.post_attention_layernorm"),
        head_norms=HEAD_NORMS.get(family, ()),
        gathers={"block.self_attn": "hidden_states", "block.mlp": ""},
    )


def is_own_module(config: Mapping[str, Any]) -> bool:
    """Whether a configuration asks for more of a known family than its blocks here do: another task, a short window."""
    written = config.get("architectures")
    named = str(written[0]) if isinstance(written, list | tuple) and written else ""
    window = config.get("sliding_window")
    is_windowed = isinstance(window, int) and not isinstance(window, bool) and window > 0
    is_short = is_windowed and config.get("use_sliding_window", True) is not False
    return named.endswith(OTHER_ENDINGS) or (is_short and config.get("model_type") in LLAMA_FAMILIES)
