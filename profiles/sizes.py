"""A Hugging Face configuration read as sizes of a transformer, without torch. One record per family of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from profiles.errors import InputError, UnknownNameError
from profiles.transformer import Transformer

Config = Mapping[str, Any]
Sizes = dict[str, float]
FLAGS = ("gated", "tied", "biases")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """One model by its sizes; `longest_sequence` is what its positions allow, 0 where they set no limit.

    Shapes: `transformer` has one entry.
    """

    name: str
    config: dict[str, Any]
    transformer: Transformer
    longest_sequence: int

    @property
    def num_layers(self) -> int:
        """Transformer layers, without embedding and head."""
        return int(self.transformer.num_layers[0])


def sizes_of(name: str, config: Config) -> ModelSizes:
    """The sizes that a configuration states.

    Raises: InputError where a size is missing; UnknownNameError for a family of models that is not known by sizes.
    """
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        raise UnknownNameError("model_type", family, FAMILIES)
    try:
        sizes = FAMILIES[family](config)
    except KeyError as error:
        raise InputError(f"model {name}: its configuration has no {error.args[0]}") from None
    columns = {field.name: sizes.get(field.name, 0.0) for field in fields(Transformer)}
    return ModelSizes(
        name=name,
        config=dict(config),
        transformer=Transformer(
            **{key: np.array([value], dtype=bool if key in FLAGS else float) for key, value in columns.items()}
        ),
        longest_sequence=int(config.get("max_position_embeddings") or config.get("n_positions") or 0),
    )


def read_config(path: Path) -> dict[str, Any]:
    """A config.json, or the one in a folder.

    Raises: InputError where it is none.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): give a Hugging Face config.json") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{path} has no model_type: give a Hugging Face config.json")
    return config


def _gpt2(config: Config) -> Sizes:
    hidden = config["n_embd"]
    return {
        "num_layers": config["n_layer"],
        "hidden_size": hidden,
        "ffn_size": config.get("n_inner") or 4 * hidden,
        "num_heads": config["n_head"],
        "num_kv_heads": config["n_head"],
        "head_dim": hidden / config["n_head"],
        "vocab_size": config["vocab_size"],
        "learned_positions": config["n_positions"],
        "tied": config.get("tie_word_embeddings", True),
        "biases": True,
    }


def _llama(config: Config) -> Sizes:
    heads = config["num_attention_heads"]
    return {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_size": config["intermediate_size"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] / heads,
        "vocab_size": config["vocab_size"],
        "tied": config.get("tie_word_embeddings", False),
        "gated": True,
    }


def _mixtral(config: Config) -> Sizes:
    return _llama(config) | {
        "num_experts": config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "expert_ffn_size": config["intermediate_size"],
    }


def _qwen3_moe(config: Config) -> Sizes:
    return _llama(config) | {
        "num_experts": config["num_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "expert_ffn_size": config["moe_intermediate_size"],
        "num_dense_layers": len(config.get("mlp_only_layers") or ()),
    }


def _deepseek(config: Config) -> Sizes:
    return _llama(config) | {
        "num_experts": config["n_routed_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "expert_ffn_size": config["moe_intermediate_size"],
        "shared_ffn_size": config["moe_intermediate_size"] * (config.get("n_shared_experts") or 0),
        "num_dense_layers": config.get("first_k_dense_replace", 0),
        "mla_q_lora": config.get("q_lora_rank") or 0,
        "mla_kv_lora": config["kv_lora_rank"],
        "mla_qk_nope": config["qk_nope_head_dim"],
        "mla_qk_rope": config["qk_rope_head_dim"],
        "mla_v": config["v_head_dim"],
    }


FAMILIES: dict[str, Callable[[Config], Sizes]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
}
