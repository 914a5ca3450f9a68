"""A model's configuration in Megatron's arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from planner.stacks.megatron.words import of_meaning
from planner.stacks.unsized import EPSILON, base_of, rope_of, scaling_of
from profiles.errors import InputError
from profiles.models.hf_config import checked
from profiles.models.hf_records import Sizes, VitConfig
from profiles.models.profile import WorkloadSpec

Value: TypeAlias = int | float | str | bool | tuple[str, ...]
# Arguments by name, as they are to be written.
Settings: TypeAlias = dict[str, Value]
GATED_WORDS = ("silu", "swish")
PLAIN_WORDS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")
# Of experts' routers: fields of configurations that Megatron has an argument for, which change no price.
ROUTER = {
    "routed_scaling_factor": "moe-router-topk-scaling-factor",
    "topk_group": "moe-router-group-topk",
    "n_group": "moe-router-num-groups",
    "scoring_func": "moe-router-score-function",
}


def say_model(workload: WorkloadSpec, sequence_length: int) -> Settings:
    """The arguments that build a model of the same sizes.

    Raises: InputError for a model that Megatron's arguments do not describe.
    """
    if not workload.reads_text:
        raise InputError(f"{workload.title}: only language models of known sizes can be exported to Megatron")
    if workload.adapters.freezes:
        raise InputError(
            f"{workload.title}: Megatron-LM trains all weights; adapters are for Megatron-Bridge: leave --peft out"
        )
    config = workload.config
    record = checked(workload.name, config)
    if isinstance(record, VitConfig):
        raise InputError(f"{workload.title}: Megatron's GPT has no patches of images")
    sizes = record.sizes
    settings = _sizes(sizes)
    settings |= _plain(config, sizes, sequence_length) if sizes.get("biases") else _gated(workload, sequence_length)
    if sizes.get("num_experts"):
        settings |= _experts(config, sizes)
    return settings


def _sizes(sizes: Sizes) -> Settings:
    """What the table says in one argument each, and key heads and latent attention."""
    settings: Settings = {}
    latent = bool(sizes.get("mla_kv_lora"))
    for name, word in of_meaning("sizes").items():
        value = int(sizes.get(name, 0))
        if value and not (latent and name == "head_dim"):
            settings[word.name] = value
    if sizes["num_kv_heads"] != sizes["num_heads"] and not latent:
        settings |= {"group-query-attention": True, "num-query-groups": int(sizes["num_kv_heads"])}
    if latent:
        settings["multi-latent-attention"] = True
    settings["vocab-size"] = int(sizes["vocab_size"])
    if not sizes.get("tied"):
        settings["untie-embeddings-and-output-weights"] = True
    return settings


def _plain(config: Mapping[str, Any], sizes: Sizes, sequence_length: int) -> Settings:
    """GPT-2: learned positions, biases, LayerNorm, GELU, dropout."""
    _check_activation(config, "activation_function", "gelu_new", PLAIN_WORDS)
    return {
        "position-embedding-type": "learned_absolute",
        "max-position-embeddings": max(int(sizes["learned_positions"]), sequence_length),
        "normalization": "LayerNorm",
        "norm-epsilon": float(config.get("layer_norm_epsilon", 1e-5)),
        "attention-dropout": float(config.get("attn_pdrop", 0.1)),
        "hidden-dropout": float(config.get("resid_pdrop", 0.1)),
    }


def _gated(workload: WorkloadSpec, sequence_length: int) -> Settings:
    """Llama and its kin: rotary positions, no biases, RMSNorm, SwiGLU."""
    config = workload.config
    _check_activation(config, "hidden_act", "silu", GATED_WORDS)
    settings: Settings = {
        "position-embedding-type": "rope",
        "max-position-embeddings": max(int(config.get("max_position_embeddings") or 0), sequence_length),
        "normalization": "RMSNorm",
        "swiglu": True,
        "disable-bias-linear": True,
        "attention-dropout": float(config.get("attention_dropout") or 0.0),
        "hidden-dropout": 0.0,
    }
    # Megatron's own usual numbers are another model's: what is not known is left to the user, with a note.
    if (base := base_of(config)) is not None:
        settings["rotary-base"] = int(base)
    if config.get(EPSILON) is not None:
        settings["norm-epsilon"] = float(config[EPSILON])
    if config["model_type"] == "qwen2" or config.get("attention_bias"):
        settings["add-qkv-bias"] = True
    # Queries and keys have norms of their own; in latent attention, what both are made of has.
    if config["model_type"] in ("qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3"):
        settings["qk-layernorm"] = True
    if scaling_of(config) == "llama3":
        settings |= {"use-rope-scaling": True, "rope-scaling-factor": float(rope_of(config).get("factor", 8.0))}
    return settings


def _check_activation(config: Mapping[str, Any], field: str, usual: str, known: Sequence[str]) -> None:
    word = config.get(field, usual)
    if word not in known:
        raise InputError(f"{field} is {word}: Megatron's arguments for this family only have {' or '.join(known)}")


def _experts(config: Mapping[str, Any], sizes: Sizes) -> Settings:
    settings: Settings = {
        "moe-token-dispatcher-type": "alltoall",
        "moe-router-load-balancing-type": "aux_loss",
        "moe-aux-loss-coeff": float(config.get("router_aux_loss_coef", 0.001)),
        "moe-router-dtype": "fp32",
    }
    settings |= {name: config[field] for field, name in ROUTER.items() if config.get(field) not in (None, 1)}
    layers = int(sizes["num_layers"])
    dense = set(config.get("mlp_only_layers") or range(int(config.get("first_k_dense_replace") or 0)))
    if dense:
        settings["moe-layer-freq"] = say_pattern([int(layer not in dense) for layer in range(layers)])
    return settings


def say_pattern(marks: Sequence[int]) -> str:
    """Which layers have experts, as Megatron reads it: ([0]*3+[1]*58)."""
    return "(" + "+".join(f"[{mark}]*{len(list(run))}" for mark, run in groupby(marks)) + ")"
