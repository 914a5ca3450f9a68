"""The columns that describe the model."""

from __future__ import annotations

import math

from planner.published.cells import Cells, Refused

ARCHITECTURES = ("gpt", "mpt", "bloom-like", "llama", "nemotron4", "moe")
BIASED = ("gpt", "mpt", "bloom-like")
MLPS = {"gpt": "gelu", "mpt": "gelu", "bloom-like": "gelu", "llama": "swiglu", "moe": "swiglu",
        "nemotron4": "squared_relu"}  # fmt: skip
VOCABULARIES = {"gpt": 51200, "mpt": 50368, "bloom-like": 250880, "llama": 32000, "nemotron4": 256000, "moe": 102400}
GROUPED_LLAMA_VOCABULARY = 128256
LATENT = {"mla_q_lora": 1536, "mla_kv_lora": 512, "mla_qk_nope": 128, "mla_qk_rope": 64, "mla_v": 128}


def read_model(cells: Cells, sequence: float) -> dict[str, float | bool]:
    """Fields of a Transformer.

    Raises: Refused where sizes are missing, impossible or do not go together.
    """
    experts = cells.size("num_experts", 0, least=0, noted=False)
    mlp = cells.text("mlp_type")
    arch = cells.word("arch", ARCHITECTURES, "moe" if experts else "gpt" if (mlp or "").lower() == "gelu" else "llama")
    hidden = cells.size("hidden_size")
    layers = cells.size("num_layers")
    mlp = cells.word("mlp_type", ("gelu", "swiglu", "squared_relu"), MLPS[arch])
    heads = cells.size("num_heads", max(1.0, float(round(hidden / 128))))
    kv_heads = cells.size("num_kv_heads", heads)
    if kv_heads > heads or heads % kv_heads:
        raise Refused(f"num_kv_heads is {kv_heads:g}; it must divide num_heads ({heads:g})")
    gated = mlp == "swiglu"
    usual = 256 * math.ceil(8 * hidden / 3 / 256) if gated else 4 * hidden
    ffn = cells.size("ffn_size", usual) if not (experts and cells.text("dense_ffn_size")) else usual
    vocabulary = GROUPED_LLAMA_VOCABULARY if arch == "llama" and kv_heads < heads else VOCABULARIES[arch]
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_size": cells.size("dense_ffn_size", ffn, noted=False) if experts else ffn,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": cells.size("head_dim", max(1.0, float(round(hidden / heads)))),
        "vocab_size": cells.size("vocab_size", vocabulary),
        "gated": gated,
        "tied": cells.flag("tied_embeddings", arch in BIASED),
        "biases": arch in BIASED,
        "learned_positions": sequence if arch in ("gpt", "mpt") else 0.0,
        **_experts(cells, experts, ffn, layers),
        **_attention(cells),
    }


def _experts(cells: Cells, experts: float, ffn: float, layers: float) -> dict[str, float]:
    if not experts:
        names = ("num_experts", "experts_per_token", "expert_ffn_size", "shared_ffn_size", "num_dense_layers")
        return dict.fromkeys(names, 0.0)
    top = cells.size("moe_topk", 2)
    if top > experts:
        raise Refused(f"moe_topk is {top:g}, more than num_experts ({experts:g})")
    dense = cells.size("num_dense_layers", 0, least=0)
    if dense > layers:
        raise Refused(f"num_dense_layers is {dense:g}, more than num_layers ({layers:g})")
    return {
        "num_experts": experts,
        "experts_per_token": top,
        "expert_ffn_size": cells.size("moe_ffn_size", ffn),
        "shared_ffn_size": cells.size("shared_expert_ffn_size", 0, least=0),
        "num_dense_layers": dense,
    }


def _attention(cells: Cells) -> dict[str, float]:
    latent = cells.word("attention", ("mha", "gqa", "mqa", "mla"), "gqa", noted=False) == "mla"
    window = cells.text("sliding_window_alternating")
    limit = 0.0
    if window is not None and window.lower() not in ("no", "false", "0", "none"):
        if window.lower() in ("yes", "true"):
            cells.assume("sliding_window_alternating", "a window of 4096")
            limit = 4096.0
        else:
            limit = cells.size("sliding_window_alternating", 0, least=0)
    sizes = {
        name: cells.size(name, default, least=0 if name == "mla_q_lora" else 1) if latent else 0.0
        for name, default in LATENT.items()
    }
    return {**sizes, "window": limit}
