"""Fields of configurations: what published ones carry is taken, what no model can be is refused by name."""

import json
from typing import Any

import pytest

from planner.plans import Plan
from profiles import artifacts
from profiles.errors import ArtifactError, InputError, UnknownNameError
from profiles.library import CONFIGS, config_names, load_model, load_sizes, model_names
from profiles.models.hf_config import FAMILIES, check_given, checked
from profiles.models.profile import WorkloadSpec
from profiles.models.sizes import read_config, sizes_of
from profiles.workloads.loading import load_workload
from tests.commands import outcome
from tests.plan_builders import GPT2, LLAMA, MIXTRAL, VIT, write_plan_file
from tests.report_builders import demo_run_file
from tests.test_sizes import COMMON
from tests.test_sizes import FAMILIES as SMALL

TEXT = {family: {"model_type": family, **COMMON, **extra} for family, extra in SMALL.items()} | {"gpt2": GPT2.config}
# As published (Hugging Face hub, as remembered), with what is null or absent there and fields that are not read.
PUBLISHED = {
    "Qwen2-0.5B": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "hidden_act": "silu",
        "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 131072,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 151936,
    },
    "Llama-3.1-8B": {
        "model_type": "llama", "attention_bias": False, "eos_token_id": [128001, 128008], "head_dim": None,
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
            "original_max_position_embeddings": 8192,
        },
        "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
    },
    "llama-7b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_hidden_layers": 32, "rms_norm_eps": 1e-06, "vocab_size": 32000, "rope_scaling": None,
    },
    "Mistral-Nemo": {
        "model_type": "mistral", "hidden_size": 5120, "head_dim": 128, "intermediate_size": 14336,
        "max_position_embeddings": 1024000, "num_attention_heads": 32, "num_hidden_layers": 40,
        "num_key_value_heads": 8, "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 131072,
    },
    "DeepSeek-V2-Lite": {
        "model_type": "deepseek_v2", "first_k_dense_replace": 1, "hidden_size": 2048, "intermediate_size": 10944,
        "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
        "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 16,
        "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 102400,
        "rope_scaling": {"beta_fast": 32, "factor": 40, "type": "yarn", "mscale": 0.707},
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "decoder_sparse_step": 1, "head_dim": 128, "hidden_size": 2048,
        "intermediate_size": 6144, "max_position_embeddings": 40960, "mlp_only_layers": [],
        "moe_intermediate_size": 768, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 151936,
    },
    "gpt2": {
        "activation_function": "gelu_new", "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
        "n_inner": None, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    },
    "vit-base": {
        "model_type": "vit", "hidden_size": 768, "image_size": 224, "intermediate_size": 3072, "num_channels": 3,
        "num_attention_heads": 12, "num_hidden_layers": 12, "patch_size": 16, "qkv_bias": True,
        "id2label": {"0": "tench", "1": "goldfish"},
    },
}  # fmt: skip
LARGE = 10**9
# Family, field, what it may not be.
WRONG = [
    *[("llama", "hidden_size", value) for value in (0, -512, 512.5, 512.0, True, "512", None, [512], 1e308, LARGE)],
    *[("llama", "num_attention_heads", value) for value in (0, 7, -8, 10**7)],
    *[("llama", "num_hidden_layers", value) for value in (0, -3, LARGE, 10**40)],
    *[("llama", "num_key_value_heads", value) for value in (0, 3, 16, -2, "2")],
    *[("llama", "vocab_size", value) for value in (0, -1, 10**12, None)],
    *[("llama", "head_dim", value) for value in (0, -64, 15, 64.0)],
    *[("llama", "intermediate_size", value) for value in (0, -5, {})],
    *[("llama", "max_position_embeddings", value) for value in ("x", 0, -1, 2**40)],
    *[("llama", "tie_word_embeddings", value) for value in ("yes", 1, None)],
    *[("mixtral", "num_local_experts", value) for value in (-8, 0, None, LARGE)],
    *[("mixtral", "num_experts_per_tok", value) for value in (0, 9)],
    *[("qwen3_moe", "num_experts_per_tok", value) for value in (0, 5)],
    *[("qwen3_moe", "moe_intermediate_size", value) for value in (0, None)],
    *[("qwen3_moe", "mlp_only_layers", value) for value in ([3], [-1], [0, 0], 2, ["0"])],
    *[("deepseek_v3", "first_k_dense_replace", value) for value in (-1, 4, None)],
    *[("deepseek_v3", "num_experts_per_tok", value) for value in (0, 9)],
    *[("deepseek_v3", "qk_rope_head_dim", value) for value in (0, 7)],
    *[("deepseek_v3", field, 0) for field in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "q_lora_rank")],
    *[("deepseek_v3", "n_shared_experts", value) for value in (-1, 1.5)],
    *[("gpt2", "n_head", value) for value in (0, 7, None)],
    *[("gpt2", "n_inner", value) for value in (0, -1, "256")],
    *[("gpt2", field, -1) for field in ("n_layer", "n_embd", "n_positions", "vocab_size")],
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_taken(name, tmp_path):
    path = tmp_path / name / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(PUBLISHED[name]))
    config = read_config(path)
    checked(name, config)
    sizes = load_sizes(str(path))
    assert (sizes is None) == (config["model_type"] == "vit")
    assert sizes is None or sizes.transformer.num_parameters[0] > 1e8


def test_shipped_configurations_are_taken():
    for name in config_names():
        checked(name, read_config(CONFIGS / f"{name}.json"))
    for name in model_names():
        checked(name, load_model(name).workload.config)


@pytest.mark.parametrize(("family", "field", "value"), WRONG, ids=str)
def test_what_no_model_can_be_is_refused_by_its_field_value_and_rule(family, field, value):
    config = TEXT[family] | {field: value}
    with pytest.raises(ArtifactError) as caught:
        sizes_of("own", config)
    sentence = str(caught.value)
    shown = field if isinstance(value, list) and field == "mlp_only_layers" else json.dumps(value)
    assert sentence.startswith("model own: at ")
    assert field in sentence
    assert shown in sentence
    assert "should" in sentence or "gives heads of" in sentence
    with pytest.raises(ArtifactError, match=field):
        check_given("own", config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 9), ("image_size", [8, 8]), ("image_size", 0), ("patch_size", 0), ("patch_size", 3),
        ("num_channels", -1), ("num_attention_heads", 7), ("hidden_size", 64.5), ("num_labels", 0),
        ("image_size", 10**9),
    ],
    ids=str,
)  # fmt: skip
def test_a_vision_transformer_is_held_to_its_fields(field, value):
    with pytest.raises(ArtifactError):
        checked("own", VIT.config | {field: value})


def test_nothing_reaches_the_library_that_builds_models_unchecked(tmp_path):
    for spec, field, value in (
        (LLAMA, "num_attention_heads", 7), (LLAMA, "hidden_size", -64), (GPT2, "n_head", 7),
        (MIXTRAL, "vocab_size", "x"), (VIT, "image_size", 9), (LLAMA, "num_hidden_layers", 10**9),
    ):  # fmt: skip
        wrong = type(spec)(kind=spec.kind, name=spec.name, config=spec.config | {field: value})
        with pytest.raises(ArtifactError, match=f"model {spec.name}: at "):
            load_workload(wrong)
    # Under the name that the library knows a field by as well.
    renamed = {key: value for key, value in GPT2.config.items() if key != "n_layer"} | {"num_hidden_layers": -1}
    with pytest.raises(ArtifactError, match="at n_layer: -1 should"):
        load_workload(type(GPT2)(kind=GPT2.kind, name=GPT2.name, config=renamed))
    # What it has a usual value for may be left out.
    sparse = {key: value for key, value in LLAMA.config.items() if key != "vocab_size"}
    assert load_workload(type(LLAMA)(kind=LLAMA.kind, name=LLAMA.name, config=sparse)).vocab_size == 32000
    check_given("own", sparse)
    with pytest.raises(ArtifactError, match="at vocab_size: field required"):
        sizes_of("own", sparse)


def test_a_plan_and_a_run_are_held_to_the_configuration_in_them(tmp_path):
    path = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2, micro_batch_size=4))
    content = json.loads(path.read_text())
    content["workload"]["config"]["num_attention_heads"] = 7
    path.write_text(json.dumps(content))
    for arguments in ((path,), (path, "--rehearse"), (path, "--emit", "torchrun")):
        code, sentence = outcome("execute", *arguments)
        assert code == 2
        assert "num_attention_heads: 7 should divide hidden_size, 64" in sentence
    run = json.loads(artifacts.dump("run", demo_run_file()))
    run["workload"]["config"] = LLAMA.config | {"hidden_size": -64}
    path.write_text(json.dumps(run))
    code, sentence = outcome("compare", path)
    assert code == 2
    assert "at hidden_size: -64 should" in sentence


def test_families_that_are_not_known_and_names_that_are_none(tmp_path):
    for family in ("lama", None, ["llama"], 7):
        with pytest.raises(UnknownNameError, match="model_type"):
            sizes_of("own", COMMON | {"model_type": family})
    with pytest.raises(InputError, match="a vision model is not known by its sizes"):
        sizes_of("own", VIT.config)
    assert set(TEXT) <= set(FAMILIES)
    for command in (("plan", "--gpus", 2, "--device", "h100-sxm", "--model"), ("profile", "model")):
        for name in ("a" * 100_000, "a" * 100_000 + ".json", "a/" * 50_000):
            code, sentence = outcome(*command, name)
            assert code == 2
            assert command[0] == "profile" or len(sentence) < 1000


@pytest.mark.parametrize(
    ("family", "fields", "longest"),
    [
        ("mistral", {"sliding_window": 48}, 48),
        ("mistral", {"sliding_window": None}, 64),
        ("mistral", {"max_position_embeddings": 8192}, 4096),
        ("qwen2", {"sliding_window": 48}, 64),
        ("qwen2", {"sliding_window": 48, "use_sliding_window": True}, 48),
    ],
)
def test_plans_and_runs_take_sequences_of_one_window(family: str, fields: dict[str, Any], longest: int) -> None:
    config = {**COMMON, "model_type": family, "max_position_embeddings": 64, **fields}
    assert sizes_of("m", config).longest_sequence == longest
    spec = WorkloadSpec(kind="transformers", name="m", config=config)
    assert load_workload(spec).max_sequence_length == longest


def test_experts_are_counted_under_both_of_their_names() -> None:
    config = dict(TEXT["qwen3_moe"])
    config["num_local_experts"] = config.pop("num_experts")
    assert sizes_of("m", config).transformer.num_experts[0] == TEXT["qwen3_moe"]["num_experts"]
    assert (
        load_workload(WorkloadSpec(kind="transformers", name="m", config=config)).num_experts
        == config["num_local_experts"]
    )
