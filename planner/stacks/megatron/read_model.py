"""The model that Megatron's arguments describe, as the nearest configuration of a known family."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from planner.stacks.handover import Given
from planner.stacks.megatron.told import Told
from profiles.errors import ArtifactError
from profiles.inputs import limits
from profiles.models.hf_config import checked
from profiles.models.profile import WorkloadSpec

# Of a file that says neither vocabulary nor tokenizer: GPT-2's, with which Megatron's examples come.
USUAL_VOCABULARY = 50257
VOCABULARIES = {"gpt2bpetokenizer": 50257, "llama2tokenizer": 32000, "tiktokenizer": 131072, "gptsentencepiece": 256000}
PADDED_TO = 128
# One run of a pattern of layers: [0]*3, or [1,0,0]*4, or the number alone.
RUN = re.compile(r"\[([01](?:,[01])*)\](?:\*(\d{1,6}))?|\(([^()]*)\)(?:\*(\d{1,6}))?")
LONGEST_PATTERN, LONGEST_NUMBER = 4096, 9


@dataclass(slots=True)
class ReadModel:
    """A model as it was read: its configuration, columns that say what that cannot, and what was filled in."""

    workload: WorkloadSpec
    num_layers: int
    has_experts: bool
    cells: dict[str, str] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)


def read_model(told: Told, given: Given, sequence_length: int) -> ReadModel:
    """The model of a file, or the one that was given beside it where the file has no sizes.

    Raises: InputError for a model that is none of a known family.
    """
    if given.workload is not None:
        return _given(told, given.workload)
    if told.is_on("hybrid-layer-pattern"):
        raise told.refuse("layers with a state in place of attention (Mamba) are not priced", "hybrid-layer-pattern")
    if told.is_on("encoder-num-layers") and told.is_on("decoder-num-layers"):
        raise told.refuse("an encoder beside a decoder (T5) is not priced", "encoder-num-layers", "decoder-num-layers")
    experts = bool(told.size("num-experts"))
    found = ReadModel(WorkloadSpec(kind="transformers", name="megatron"), 0, has_experts=experts)
    layers = told.size("num-layers") or told.size("encoder-num-layers")
    hidden, heads = told.size("hidden-size"), told.size("num-attention-heads")
    if not (layers and hidden and heads):
        missing = [
            name
            for name, size in (("num-layers", layers), ("hidden-size", hidden), ("num-attention-heads", heads))
            if not size
        ]
        raise told.refuse(f"it has no {' and no '.join(missing)}: name the model beside it, with --model")
    if layers > limits.LAYERS:
        raise told.refuse(f"the most layers that are priced are {limits.LAYERS}", "num-layers")
    found.num_layers = layers
    config = _config(told, found, layers, hidden, heads, sequence_length)
    name = f"{config['model_type']}-{layers}x{hidden}"
    try:
        checked(name, config)
    except ArtifactError as error:
        raise told.refuse(f"no model can have these sizes: {error}", "hidden-size", "num-attention-heads") from None
    found.workload = WorkloadSpec(kind="transformers", name=name, config=config)
    return found


def _given(told: Told, workload: WorkloadSpec) -> ReadModel:
    """The model that the user names, which has as many layers as the file, if that says."""
    sizes = getattr(checked(workload.name, workload.config), "sizes", {})
    layers, own = int(sizes.get("num_layers", 0)), told.size("num-layers")
    if own not in (None, layers):
        raise told.refuse(f"--model {workload.name} has {layers} layers: leave one out", "num-layers")
    return ReadModel(workload, layers, has_experts=bool(sizes.get("num_experts")))


def _config(told: Told, found: ReadModel, layers: int, hidden: int, heads: int, sequence_length: int) -> dict[str, Any]:
    gated = told.is_on("swiglu") or told.is_on("quick-geglu")
    # Of gates Megatron narrows SwiGLU's alone.
    narrow = int(4 * hidden * 2 / 3 / 64) * 64 if told.is_on("swiglu") else 4 * hidden
    ffn = told.size("ffn-hidden-size") or narrow
    groups = told.size("num-query-groups") if told.is_on("group-query-attention") else heads
    if not told.is_on("group-query-attention") and told.size("num-query-groups") not in (1, heads):
        found.assumed.append(f"{told.said['num-query-groups'].text} only counts with --group-query-attention")
    positions = told.size("max-position-embeddings") or sequence_length
    vocabulary = _vocabulary(told, found)
    tied = not told.is_on("untie-embeddings-and-output-weights")
    own = told.size("kv-channels")
    latent = told.is_on("multi-latent-attention")
    if not gated and not found.has_experts and not latent:
        config = {
            "model_type": "gpt2", "n_layer": layers, "n_embd": hidden, "n_head": heads, "n_positions": positions,
            "vocab_size": vocabulary, "tie_word_embeddings": tied, "layer_norm_epsilon": told.number("norm-epsilon"),
            "attn_pdrop": told.number("attention-dropout"), "resid_pdrop": told.number("hidden-dropout"),
        }  # fmt: skip
        if ffn != 4 * hidden:
            config["n_inner"] = ffn
        _tell_of_plain(told, found, heads, groups or heads, own if own != hidden // heads else None)
        return config
    config = {
        "model_type": _family(told), "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": vocabulary,
        "max_position_embeddings": positions, "tie_word_embeddings": tied, "rms_norm_eps": told.number("norm-epsilon"),
        "rope_theta": told.number("rotary-base"),
    }  # fmt: skip
    if own and own * heads != hidden and not latent:
        config["head_dim"] = own
    if told.is_on("use-rope-scaling"):
        config["rope_scaling"] = {"rope_type": "llama3", "factor": told.number("rope-scaling-factor")}
    _tell_of_gated(told, found, gated)
    return config | (_experts(told, found, layers, ffn) if found.has_experts or latent else {})


def _family(told: Told) -> str:
    if told.is_on("multi-latent-attention"):
        return "deepseek_v3"
    if told.size("num-experts"):
        own = told.size("moe-ffn-hidden-size")
        is_alike = own in (None, told.size("ffn-hidden-size")) and told.word("moe-layer-freq") == "1"
        return "mixtral" if is_alike and not told.is_on("qk-layernorm") else "qwen3_moe"
    if told.is_on("qk-layernorm"):
        return "qwen3"
    return "qwen2" if told.is_on("add-qkv-bias") and told.is_on("disable-bias-linear") else "llama"


def _vocabulary(told: Told, found: ReadModel) -> int:
    """Tokens that there are, or with what they are padded to where that is not the usual multiple."""
    own = told.size("vocab-size") or told.size("padded-vocab-size")
    if own is None:
        kind = (told.word("tokenizer-type") or "").lower()
        own = next((size for name, size in VOCABULARIES.items() if kind.startswith(name)), USUAL_VOCABULARY)
        found.assumed.append(f"vocab-size: {own} ({f'of a {kind}' if kind else 'as GPT-2'}: the file does not say)")
    multiple = told.size("make-vocab-size-divisible-by") or PADDED_TO
    if multiple == PADDED_TO:
        return own
    multiple *= told.size("tensor-model-parallel-size") or 1
    return math.ceil(own / multiple) * multiple


def _tell_of_plain(told: Told, found: ReadModel, heads: int, groups: int, head: int | None) -> None:
    """What a model of GPT-2's family has otherwise than that."""
    if groups != heads:
        found.cells["num_kv_heads"] = str(groups)
    if head:
        found.cells["head_dim"] = str(head)
    if told.is_on("squared-relu"):
        found.cells["mlp_type"] = "squared_relu"
    is_learned = told.word("position-embedding-type") == "learned_absolute"
    if told.is_on("use-rotary-position-embeddings") or not is_learned:
        # Without learned positions; its biases, if it has none, are too small to matter.
        found.cells["arch"] = "nemotron4" if told.is_on("squared-relu") else "bloom-like"
        if told.is_on("untie-embeddings-and-output-weights"):
            found.cells["tied_embeddings"] = "no"
    if told.is_on("disable-bias-linear"):
        found.assumed.append("biases of linear layers: as in GPT-2, which takes almost no time")


def _tell_of_gated(told: Told, found: ReadModel, gated: bool) -> None:
    """What a model of Llama's kin has otherwise than those."""
    if not gated:
        found.cells["mlp_type"] = "squared_relu" if told.is_on("squared-relu") else "gelu"
    if told.word("normalization") == "LayerNorm":
        found.assumed.append("normalization: RMSNorm in place of LayerNorm, which takes as long")
    if not told.is_on("disable-bias-linear"):
        found.assumed.append("biases of linear layers: none, which takes almost no time")


def _experts(told: Told, found: ReadModel, layers: int, ffn: int) -> dict[str, Any]:
    experts, width = told.size("num-experts"), told.size("moe-ffn-hidden-size") or ffn
    top = told.size("moe-router-topk")
    marks = read_pattern(told, layers) if experts else [0] * layers
    dense = [layer for layer, mark in enumerate(marks) if not mark]
    shared = told.size("moe-shared-expert-intermediate-size")
    if not told.is_on("multi-latent-attention"):
        if shared:
            found.cells["shared_expert_ffn_size"] = str(shared)
        if _family(told) == "mixtral":
            return {"num_local_experts": experts, "num_experts_per_tok": top}
        return {
            "num_experts": experts, "num_experts_per_tok": top, "moe_intermediate_size": width,
            "mlp_only_layers": dense,
        }  # fmt: skip
    if dense and dense != list(range(len(dense))):
        found.assumed.append(f"moe-layer-freq: {len(dense)} layers without experts, taken to be the first")
    if shared and shared % width:
        found.cells["shared_expert_ffn_size"] = str(shared)
    return {
        "n_routed_experts": experts or 1, "num_experts_per_tok": top if experts else 1, "moe_intermediate_size": width,
        "n_shared_experts": (shared or 0) // width, "first_k_dense_replace": len(dense),
        "q_lora_rank": told.size("q-lora-rank"), "kv_lora_rank": told.size("kv-lora-rank"),
        "qk_nope_head_dim": told.size("qk-head-dim"), "qk_rope_head_dim": told.size("qk-pos-emb-head-dim"),
        "v_head_dim": told.size("v-head-dim"),
    }  # fmt: skip


def read_pattern(told: Told, layers: int) -> list[int]:
    """Which layers have experts: every n-th, or a list as Python writes it, of numbers, products and sums.

    Raises: InputError for what is neither, or has another number of layers.
    """
    text = (told.word("moe-layer-freq") or "1").replace(" ", "").replace("'", "")
    if text.isdecimal() and len(text) < LONGEST_NUMBER:
        return [int(layer % max(1, int(text)) == 0) for layer in range(layers)]
    marks = _unrolled(text, 0)
    if marks is None or len(marks) != layers or not set(marks) <= {0, 1}:
        raise told.refuse(f"it should be a number, or a mark for each of {layers} layers", "moe-layer-freq")
    return marks


def _unrolled(text: str, depth: int) -> list[int] | None:
    """The marks of an expression, None for what is no such; nothing is evaluated."""
    marks: list[int] = []
    place = 0
    while place < len(text):
        run = RUN.match(text, place)
        if run is None or depth > 4:
            return None
        numbers, times, inner, inner_times = run.groups()
        own = [int(one) for one in numbers.split(",")] if numbers else _unrolled(inner, depth + 1)
        count = int(times or inner_times or 1)
        if own is None or len(marks) + len(own) * count > LONGEST_PATTERN:
            return None
        marks += own * count
        place = run.end()
        if place < len(text):
            if text[place] != "+":
                return None
            place += 1
    return marks
