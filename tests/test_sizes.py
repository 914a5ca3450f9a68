"""Sizes read from a configuration agree with the module that transformers builds from it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from profiles.errors import InputError, UnknownNameError
from profiles.library import load_model, model_names
from profiles.models.sizes import read_config, sizes_of

COMMON = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES = {
    "llama": {},
    "mistral": {"head_dim": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16},
    "deepseek_v3": {
        "num_key_value_heads": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 48, "kv_lora_rank": 32,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_group": 2, "topk_group": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", model_names())
def test_shipped_models_have_as_many_parameters_as_their_traces(name: str) -> None:
    profile = load_model(name)
    sizes = sizes_of(name, profile.workload.config)
    # Norms of single heads, and biases of some linears only, are left out: fewer than one in ten thousand.
    assert float(sizes.transformer.num_parameters[0]) == pytest.approx(profile.num_parameters, rel=1e-4)
    assert sizes.num_layers + 2 == profile.num_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_as_many_parameters_as_their_modules(family: str) -> None:
    config = COMMON | FAMILIES[family]
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    sizes = sizes_of(family, {"model_type": family, **config})
    count = sum(parameter.numel() for parameter in module.parameters())
    assert float(sizes.transformer.num_parameters[0]) == pytest.approx(
        count, rel=2e-3 if family == "qwen3_moe" else 1e-9
    )


def test_unknown_families_and_missing_sizes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="model_type"):
        sizes_of("x", {"model_type": "lama"})
    with pytest.raises(InputError, match="vocab_size"):
        sizes_of("x", {"model_type": "llama", **{key: COMMON[key] for key in COMMON if key != "vocab_size"}})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **COMMON}))
    assert read_config(tmp_path)["hidden_size"] == 128
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no model_type"):
        read_config(tmp_path)
