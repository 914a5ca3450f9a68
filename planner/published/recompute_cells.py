"""What a row says of recomputation, as shares of layers, of their products, and of what they would keep."""

from __future__ import annotations

from collections.abc import Mapping

from planner.published.cells import Cells

Model = Mapping[str, float | bool]
# Marks a job of which the row does not say whether it recomputes.
UNKNOWN_RECOMPUTE = "unknown_recompute"
LAYER, CORE, OPERATORS = "layer", "core-attention", "operators"
KEPT, EVERY_SECOND = "kept:", "every-second-matmul"
# By what names a row calls the pieces that are repeated together.
GROUPS = {
    LAYER: ("qkv-proj", CORE, "out-proj", "mlp-up", "mlp-down", "layernorm", "moe-act"),
    "mlp": ("mlp-up", "mlp-down", "moe-act"),
    "mla-up-proj": ("qkv-proj",),
    "attention": ("qkv-proj", CORE, "out-proj"),
}
LINEARS = ("qkv-proj", "out-proj", "mlp-up", "mlp-down")


def read_recompute(cells: Cells, model: Model, sequence: float, *, by_operator: bool) -> dict[str, float | str]:
    """Fields of a job; `by_operator`: the stack's selective recomputation keeps every second product.

    Raises: Refused for an unknown class, and a share of layers that is none.
    """
    method, share = cells.word("recompute_class"), cells.size("recompute_layers_fraction")
    named = cells.items("recompute_modules")
    usual: dict[str, float | str] = {
        "recompute": method,
        "recompute_share": share,
        "recompute_products": 1.0,
        "recompute_freed": 1.0,
    }
    if cells.text("recompute_class") is None:
        return usual | {UNKNOWN_RECOMPUTE: 1.0}
    if method in ("none", "full"):
        return usual
    if not named and method == "partial":
        is_share = cells.text("recompute_layers_fraction") is not None
        cells.guess("recompute_modules", f"{LAYER if is_share else CORE} assumed")
        return usual | {"recompute": "full" if is_share else "selective"}
    if LAYER in named:
        return usual | {"recompute": "full"}
    core = {CORE, KEPT + CORE, KEPT + EVERY_SECOND} if by_operator else {CORE}
    if set(named) <= core or named == (OPERATORS,):
        return usual | {"recompute": "selective"}
    products, freed = _shares(cells, named, _pieces(model, sequence))
    return usual | {"recompute": "partial", "recompute_products": products, "recompute_freed": freed}


def _pieces(model: Model, sequence: float) -> dict[str, tuple[float, float]]:
    """Work of a layer's pieces per token, in multiply-adds, and how many elements of what they give is kept for each.

    Model: half of the scores are masked. The layer's input is kept whatever is recomputed, its output by the next one.
    """
    size = {name: float(value) for name, value in model.items()}
    hidden, is_latent = size["hidden_size"], size["mla_kv_lora"] > 0
    query = size["mla_qk_nope"] + size["mla_qk_rope"] if is_latent else size["head_dim"]
    value = size["mla_v"] if is_latent else size["head_dim"]
    keys = size["num_heads"] if is_latent else size["num_kv_heads"]
    packed, output = size["num_heads"] * query + keys * (query + value), size["num_heads"] * value
    routed = size["experts_per_token"] * size["expert_ffn_size"] + size["shared_ffn_size"]
    inside = routed if size["num_experts"] else size["ffn_size"]
    widths = 2.0 if model["gated"] else 1.0
    return {
        "qkv-proj": (hidden * packed, packed),
        CORE: (sequence / 2 * size["num_heads"] * (query + value), output),
        "out-proj": (hidden * output, hidden),
        "mlp-up": (hidden * inside * widths, inside * widths),
        "mlp-down": (hidden * inside, 0.0),
        "layernorm": (0.0, 2 * hidden),
        "moe-act": (0.0, inside),
    }


def _shares(cells: Cells, named: tuple[str, ...], pieces: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Shares of a layer's products that are repeated, and of what it would keep that is not.

    Model: attention that is repeated leaves its inputs and its output, which the next product reads.
    """
    keeps = [word.removeprefix(KEPT) for word in named if word.startswith(KEPT)]
    words = keeps or list(named)
    chosen = dict.fromkeys(pieces, 0.0)
    for word in words:
        if word == EVERY_SECOND:
            chosen |= {name: max(chosen[name], 0.5) for name in LINEARS}
        elif word in GROUPS or word in pieces:
            chosen |= dict.fromkeys(GROUPS.get(word, (word,)), 1.0)
        else:
            cells.guess("recompute_modules", f"'{word}' is unknown and was ignored")
    repeated = {name: 1 - share for name, share in chosen.items()} if keeps else chosen
    work, held = (sum(piece[place] for piece in pieces.values()) for place in (0, 1))
    products = sum(pieces[name][0] * share for name, share in repeated.items()) / work
    free = sum(pieces[name][1] * share for name, share in repeated.items() if keeps or name != CORE)
    freed = free / held
    cells.assumptions.append(
        f"recompute_modules: {products:.0%} of a layer's products repeated, {freed:.0%} of its activations not kept"
    )
    return products, freed
