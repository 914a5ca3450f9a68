"""The columns that describe the model."""

from __future__ import annotations

import math

from planner.published.cells import FALSE, Cells, Refused

BIASED = ("gpt", "mpt", "bloom-like")
MLPS = {"gpt": "gelu", "mpt": "gelu", "bloom-like": "gelu", "llama": "swiglu", "moe": "swiglu",
        "nemotron4": "squared_relu"}  # fmt: skip
VOCABULARIES = {"gpt": 51200, "mpt": 50368, "bloom-like": 250880, "llama": 32000, "nemotron4": 256000, "moe": 102400}
GROUPED_LLAMA_VOCABULARY = 128256
LATENT = ("mla_q_lora", "mla_kv_lora", "mla_qk_nope", "mla_qk_rope", "mla_v")
USUAL_WINDOW = 4096.0


def read_model(cells: Cells, sequence: float) -> dict[str, float | bool]:
    """Fields of a Transformer.

    Raises: Refused where sizes are missing, impossible or do not go together.
    """
    experts = cells.size("num_experts")
    plain = (cells.text("mlp_type") or "").lower() == "gelu"
    arch = cells.word("arch", "moe" if experts else "gpt" if plain else "llama")
    hidden = cells.size("hidden_size")
    layers = cells.size("num_layers")
    mlp = cells.word("mlp_type", MLPS[arch])
    heads = cells.size("num_heads", max(1.0, float(round(hidden / 128))))
    kv_heads = cells.size("num_kv_heads", heads)
    if kv_heads > heads or heads % kv_heads:
        raise Refused(f"num_kv_heads is {kv_heads:g}; it must divide num_heads ({heads:g})")
    gated = mlp == "swiglu"
    usual = 256 * math.ceil(8 * hidden / 3 / 256) if gated else 4 * hidden
    # Where all layers have experts of a known size, no layer has this one.
    is_idle = bool(experts) and cells.text("moe_ffn_size") is not None and cells.text("num_dense_layers") in (None, "0")
    ffn = cells.size("ffn_size", usual, noted=not is_idle) if not (experts and cells.text("dense_ffn_size")) else usual
    vocabulary = GROUPED_LLAMA_VOCABULARY if arch == "llama" and kv_heads < heads else VOCABULARIES[arch]
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_size": cells.size("dense_ffn_size", ffn) if experts else ffn,
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
    top = cells.size("moe_topk")
    if top > experts:
        raise Refused(f"moe_topk is {top:g}, more than num_experts ({experts:g})")
    dense = cells.size("num_dense_layers")
    if dense > layers:
        raise Refused(f"num_dense_layers is {dense:g}, more than num_layers ({layers:g})")
    return {
        "num_experts": experts,
        "experts_per_token": top,
        "expert_ffn_size": cells.size("moe_ffn_size", ffn),
        "shared_ffn_size": cells.size("shared_expert_ffn_size"),
        "num_dense_layers": dense,
    }


def _attention(cells: Cells) -> dict[str, float]:
    latent = cells.word("attention") == "mla"
    window = (cells.text("sliding_window_alternating") or "no").lower()
    limit = 0.0
    if window in ("yes", "true"):
        cells.assume("sliding_window_alternating", f"a window of {USUAL_WINDOW:g}")
        limit = USUAL_WINDOW
    elif window not in FALSE:
        limit = cells.size("sliding_window_alternating")
    return {**{name: cells.size(name) if latent else 0.0 for name in LATENT}, "window": limit}
