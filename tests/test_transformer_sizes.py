"""Parameters and FLOPs from sizes alone agree with the transformers library's own modules and with torch's counter."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from profiles.models.operators import evaluate
from profiles.models.profile import WorkloadSpec
from profiles.models.transformer import Transformer
from profiles.tracing.trace import trace
from profiles.workloads.loading import load_workload

FLAGS = ("gated", "tied", "biases")
BATCH, SEQUENCE = 2, 96


def sizes(*models: dict[str, float]) -> Transformer:
    """Columns of models; what a model does not name is absent."""
    names = [field.name for field in fields(Transformer)]
    assert all(set(model) <= set(names) for model in models)
    columns = {name: [model.get(name, 0) for model in models] for name in names}
    return Transformer(
        **{name: np.array(column, dtype=np.bool_ if name in FLAGS else np.float64) for name, column in columns.items()}
    )


def transformers_model(family: str, config: dict[str, object]) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))


def count(family: str, config: dict[str, object]) -> int:
    return sum(parameter.numel() for parameter in transformers_model(family, config).parameters())


GPT2 = (
    "gpt2",
    {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256, "vocab_size": 500},
    {
        "num_layers": 3, "hidden_size": 128, "ffn_size": 512, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32,
        "vocab_size": 500, "learned_positions": 256, "tied": True, "biases": True,
    },
)  # fmt: skip
LLAMA_CONFIG = {
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 500, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_SIZES = {
    "num_layers": 3, "hidden_size": 128, "ffn_size": 352, "num_heads": 8, "num_kv_heads": 2, "head_dim": 16,
    "vocab_size": 500, "gated": True,
}  # fmt: skip
LLAMA = ("llama", LLAMA_CONFIG, LLAMA_SIZES)
TIED = ("llama", LLAMA_CONFIG | {"tie_word_embeddings": True}, LLAMA_SIZES | {"tied": True})
WIDE_HEADS = ("mistral", LLAMA_CONFIG | {"head_dim": 24, "sliding_window": None}, LLAMA_SIZES | {"head_dim": 24})
MPT = (
    "mpt",
    {"d_model": 128, "n_layers": 3, "n_heads": 4, "max_seq_len": 256, "vocab_size": 500, "expansion_ratio": 4},
    {
        "num_layers": 3, "hidden_size": 128, "ffn_size": 512, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32,
        "vocab_size": 500, "tied": True,
    },
)  # fmt: skip
MIXTRAL = (
    "mixtral",
    LLAMA_CONFIG | {"num_local_experts": 4, "num_experts_per_tok": 2},
    LLAMA_SIZES | {"ffn_size": 0, "num_experts": 4, "experts_per_token": 2, "expert_ffn_size": 352},
)
# Two shared experts are one feed-forward network of twice the width.
DEEPSEEK_CONFIG = {
    "vocab_size": 500, "hidden_size": 128, "intermediate_size": 352, "moe_intermediate_size": 48,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "n_shared_experts": 2,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 40,
    "q_lora_rank": 56, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 20, "n_group": 1,
    "topk_group": 1, "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK_SIZES = {
    "num_layers": 4, "hidden_size": 128, "ffn_size": 352, "num_heads": 4, "num_kv_heads": 4, "vocab_size": 500,
    "gated": True, "num_experts": 8, "experts_per_token": 2, "expert_ffn_size": 48, "shared_ffn_size": 96,
    "num_dense_layers": 1, "mla_q_lora": 56, "mla_kv_lora": 40, "mla_qk_nope": 24, "mla_qk_rope": 8, "mla_v": 20,
}  # fmt: skip
DEEPSEEK_V3 = ("deepseek_v3", DEEPSEEK_CONFIG, DEEPSEEK_SIZES)
DEEPSEEK_V2 = ("deepseek_v2", DEEPSEEK_CONFIG, DEEPSEEK_SIZES)
# DeepSeek-V2-Lite: queries are not compressed.
DEEPSEEK_LITE = ("deepseek_v2", DEEPSEEK_CONFIG | {"q_lora_rank": None}, DEEPSEEK_SIZES | {"mla_q_lora": 0})
EXACT = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama-tied": TIED,
    "mistral-wide-heads": WIDE_HEADS,
    "mpt": MPT,
    "mixtral": MIXTRAL,
    "deepseek-v2": DEEPSEEK_V2,
    "deepseek-v2-lite": DEEPSEEK_LITE,
    "deepseek-v3": DEEPSEEK_V3,
}


@pytest.mark.parametrize("name", EXACT)
def test_parameters_equal_those_of_the_transformers_model(name):
    family, config, model = EXACT[name]
    assert sizes(model).num_parameters[0] == count(family, config)


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        # Biases of query, key and value alone.
        ("qwen2", lambda m: m["num_layers"] * (m["num_heads"] + 2 * m["num_kv_heads"]) * m["head_dim"]),
        # Norms of one query and one key head.
        ("qwen3", lambda m: m["num_layers"] * 2 * m["head_dim"]),
    ],
)
def test_what_the_sizes_of_qwen_leave_out(family, extra):
    config = LLAMA_CONFIG | ({"head_dim": 16} if family == "qwen3" else {})
    ours = sizes(LLAMA_SIZES).num_parameters[0]
    assert count(family, config) - ours == extra(LLAMA_SIZES)


def test_the_parts_are_those_of_the_modules():
    family, config, model = DEEPSEEK_V3
    module, ours = transformers_model(family, config).get_submodule("model"), sizes(model)

    def parameters(path: str) -> int:
        return sum(parameter.numel() for parameter in module.get_submodule(path).parameters())

    norms = 56 + 40  # of the compressed query and of the compressed key and value
    assert parameters("layers.0") == ours.dense_layer_parameters[0]
    assert parameters("layers.1") == ours.moe_shared_parameters[0] + ours.expert_parameters[0]
    assert parameters("layers.1.mlp.experts") == ours.expert_parameters[0]
    assert parameters("layers.1.self_attn") == ours.attention_parameters[0] + norms
    assert parameters("layers.1.mlp.shared_experts") == ours.feed_forward_parameters(ours.shared_ffn_size)[0]
    assert parameters("embed_tokens") == ours.embedding_parameters[0]


def test_columns_give_what_each_model_gives_alone():
    models = [model for _, _, model in EXACT.values()]
    together = sizes(*models)
    for name in ("num_parameters", "active_matmul_parameters", "head_parameters", "dense_layer_parameters"):
        alone = [getattr(sizes(model), name)[0] for model in models]
        np.testing.assert_array_equal(getattr(together, name), alone)
    np.testing.assert_array_equal(together.take(together.is_mla).num_parameters, together.num_parameters[-3:])


# Sizes of published configurations; parameters as their authors print them, in billions.
@pytest.mark.parametrize(
    ("model", "total", "active"),
    [
        (
            {
                "num_layers": 61, "hidden_size": 7168, "ffn_size": 18432, "num_heads": 128, "num_kv_heads": 128,
                "vocab_size": 129280, "gated": True, "num_experts": 256, "experts_per_token": 8,
                "expert_ffn_size": 2048, "shared_ffn_size": 2048, "num_dense_layers": 3, "mla_q_lora": 1536,
                "mla_kv_lora": 512, "mla_qk_nope": 128, "mla_qk_rope": 64, "mla_v": 128,
            },
            671,
            37,
        ),
        (
            {
                "num_layers": 32, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128,
                "vocab_size": 32000, "gated": True, "num_experts": 8, "experts_per_token": 2, "expert_ffn_size": 14336,
            },
            46.7,
            12.9,
        ),
    ],
    ids=["deepseek-v3", "mixtral-8x7b"],
)  # fmt: skip
def test_published_mixtures_have_their_published_sizes(model, total, active):
    ours = sizes(model)
    assert ours.num_parameters[0] / 1e9 == pytest.approx(total, rel=0.002)
    # Authors count the embedding among the active parameters or not.
    assert ours.active_matmul_parameters[0] / 1e9 == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied", "mistral-wide-heads"])
def test_flops_are_those_of_the_traced_layers(name):
    family, config, model = EXACT[name]
    profile = trace(
        load_workload(WorkloadSpec(kind="transformers", name=name, config={"model_type": family} | config)), ["fp32"]
    )
    traced = sum(
        float(evaluate(layer.flops(phase), BATCH, SEQUENCE, 1))
        for layer in profile.each_layer("fp32")
        for phase in ("forward", "backward")
    )
    ours = sizes(model)
    # Two products forward; backward computes the scores again and has four more: five.
    per_product = 2 * BATCH * SEQUENCE**2 * ours.num_heads * ours.qk_head_dim
    attention = ours.num_layers * (2 + 5) * per_product
    expected = 6 * ours.active_matmul_parameters * BATCH * SEQUENCE + attention
    assert traced == pytest.approx(float(expected[0]), rel=0.001)


@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral"])
def test_flops_of_a_mixture_are_those_of_the_experts_in_use(name):
    family, config, model = EXACT[name]
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **config), attn_implementation="eager", experts_implementation="eager"
    )
    tokens = torch.randint(0, 500, (BATCH, SEQUENCE))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(tokens)
    ours = sizes(model)
    attention = ours.num_layers * 2 * BATCH * SEQUENCE**2 * ours.num_heads * (ours.qk_head_dim + ours.v_head_dim)
    expected = 2 * ours.active_matmul_parameters * BATCH * SEQUENCE + attention
    assert counter.get_total_flops() == pytest.approx(float(expected[0]), rel=0.01)
