"""A config.json of somebody else: every field of every family with values that it cannot have."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from tests.trial.case import ACCEPTED_OR_REFUSED, GOOD, NO_PLAN, Case, Content
from tests.trial.material import CONFIGS, TOO_LARGE, folder, raw, symlink_loop, without, written
from tests.trial.own_files import DEEP

PLAN = ("--gpus", "1", "--global-batch", "1", "--device", "h100-sxm", "--simulate", "--json")
# What no size of a model can be, by the word that names it.
NO_SIZE: dict[str, Any] = {
    "0": 0, "negative": -64, "512.5": 512.5, "true": True, "a text": "64", "a list": [64], "an object": {},
    "NaN": math.nan,
    "Infinity": math.inf, "1e999": raw(TOO_LARGE), "1e308": 1e308, "10^30": 10**30, "5,000 digits": raw("9" * 5000),
}  # fmt: skip
FEW = ("0", "negative", "512.5", "true", "a text", "a list", "NaN", "10^30")
# Sizes by family; of those in the second list null means the usual, as transformers write it.
SIZES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "llama": (
        ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
        ("num_key_value_heads", "head_dim", "max_position_embeddings"),
    ),
    "mistral": (("hidden_size", "num_attention_heads", "vocab_size"), ("num_key_value_heads",)),
    "qwen2": (("hidden_size", "intermediate_size", "num_hidden_layers"), ("num_key_value_heads",)),
    "qwen3": (("hidden_size", "num_attention_heads", "vocab_size"), ("head_dim",)),
    "gpt2": (("n_embd", "n_layer", "n_head", "n_positions", "vocab_size"), ("n_inner",)),
    "mixtral": (("num_local_experts", "num_experts_per_tok", "intermediate_size"), ()),
    "qwen3_moe": (("num_experts", "num_experts_per_tok", "moe_intermediate_size"), ()),
    "deepseek_v3": (
        ("n_routed_experts", "moe_intermediate_size", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
            "v_head_dim"),
        ("q_lora_rank", "n_shared_experts"),
    ),
}  # fmt: skip
ZERO_IS_NONE = {
    "n_inner",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "q_lora_rank",
    "n_shared_experts",
}
# Sizes that do not go together, and other words: family, field, value, what the sentence names.
CONTRADICTIONS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("llama", {"num_attention_heads": 7, "num_key_value_heads": 7}, "num_attention_heads"),
    ("llama", {"hidden_size": 4096, "num_attention_heads": 7}, "num_attention_heads"),
    ("llama", {"num_attention_heads": 128, "num_key_value_heads": 128}, "num_attention_heads"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("llama", {"num_key_value_heads": 16}, "num_key_value_heads"),
    ("llama", {"num_key_value_heads": 8}, "num_key_value_heads"),
    ("mistral", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("qwen2", {"num_attention_heads": 7}, "num_attention_heads"),
    ("qwen3", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("gpt2", {"n_head": 7}, "n_head"),
    ("gpt2", {"n_head": 128}, "n_head"),
    ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok"),
    ("mixtral", {"num_local_experts": 10**9}, "num_local_experts"),
    ("qwen3_moe", {"num_experts_per_tok": 5}, "num_experts_per_tok"),
    ("qwen3_moe", {"mlp_only_layers": 3}, "mlp_only_layers"),
    ("qwen3_moe", {"mlp_only_layers": "all"}, "mlp_only_layers"),
    ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3, 4]}, "mlp_only_layers"),
    ("qwen3_moe", {"mlp_only_layers": [99]}, "mlp_only_layers"),
    ("deepseek_v3", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    ("deepseek_v3", {"first_k_dense_replace": 99}, "first_k_dense_replace"),
    ("deepseek_v3", {"first_k_dense_replace": -1}, "first_k_dense_replace"),
    ("deepseek_v3", {"first_k_dense_replace": 1.5}, "first_k_dense_replace"),
    ("deepseek_v3", {"n_shared_experts": -1}, "n_shared_experts"),
    ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ("llama", {"tie_word_embeddings": 7}, "tie_word_embeddings"),
    ("gpt2", {"tie_word_embeddings": []}, "tie_word_embeddings"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("llama", {"hidden_size": 10**9}, "hidden_size"),
    ("llama", {"vocab_size": 10**15}, "vocab_size"),
    ("llama", {"max_position_embeddings": "x"}, "max_position_embeddings"),
    ("llama", {"model_type": "nonsense"}, "model_type.*nonsense"),
    ("llama", {"model_type": "lama"}, "did you mean 'llama'"),
    ("llama", {"model_type": ""}, "model_type"),
    ("llama", {"model_type": None}, "model_type"),
    ("llama", {"model_type": 7}, "model_type"),
    ("llama", {"model_type": ["llama"]}, "model_type"),
    ("llama", {"model_type": "x" * 100_000}, "model_type"),
    ("llama", {"model_type": "bert"}, "names no architectures: give --task, for a bert"),
    ("llama", {"model_type": "\x1b[31mllama"}, "model_type"),
)
# What says nothing of sizes is left alone; code that a configuration brings along is never run.
IGNORED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {"auto_map": {"AutoModel": "evil--modeling.Evil"}, "trust_remote_code": True}),
    ("llama", {"architectures": ["Nonsense"], "colour": "red", "torch_dtype": 7}),
    ("llama", {"_name_or_path": "../../etc/passwd"}),
    ("llama", {"num_key_value_heads": None, "head_dim": None}),
    ("llama", {"head_dim": 32}),
    ("gpt2", {"n_inner": None}),
    ("deepseek_v3", {"q_lora_rank": None, "n_shared_experts": None}),
    ("qwen3_moe", {"mlp_only_layers": []}),
    ("llama", {"transformers_version": "\ud83d\ude00", "comment": "é" * 1000}),
)
FILES: dict[str, tuple[Content, str]] = {
    "empty": ("", "config.json"),
    "no JSON": ("model_type: llama", "config.json"),
    "a list": ("[]", "config.json"),
    "null": ("null", "config.json"),
    "a text": ('"llama"', "config.json"),
    "an empty object": ("{}", "model_type"),
    "cut off": (written(CONFIGS["llama"])[:80], "config.json"),
    "binary": (bytes(range(256)), "config.json"),
    "in UTF-16": (json.dumps(CONFIGS["llama"]).encode("utf-16"), "config.json"),
    "Latin-1": (b'{"model_type": "llama", "comment": "\xe9"}', "config.json"),
    "100,000 deep": ("[" * DEEP + "]" * DEEP, "config.json"),
    "deep inside": ('{"model_type": "llama", "x": ' + "[" * DEEP + "]" * DEEP + "}", "config.json"),
    "objects deep inside": ('{"model_type": "llama", "x": ' + '{"a":' * DEEP + "1" + "}" * DEEP + "}", "config.json"),
    "a folder": (folder, "config.json"),
    "a link to itself": (symlink_loop, "config.json"),
    "two documents": (written(CONFIGS["llama"]) * 2, "config.json"),
}


def _plans(name: str, config: Any, code: Any, words: str, **fields: Any) -> Case:
    return Case(
        name=f"config {name}", command="plan", arguments=("--model", "config.json", *PLAN),
        files={"config.json": written(config)}, code=code, words=words, **fields,
    )  # fmt: skip


def _fields() -> Iterator[Case]:
    for family, (needed, optional) in SIZES.items():
        config = CONFIGS[family]
        for name in (*needed, *optional):
            values = NO_SIZE if family == "llama" else {key: NO_SIZE[key] for key in FEW}
            for what, value in values.items():
                is_usual = what == "0" and name in ZERO_IS_NONE
                # A number of so many digits is refused before it is known of which field it is.
                words = "digits|config.json" if what == "5,000 digits" else name
                code = ACCEPTED_OR_REFUSED if is_usual else 2
                yield _plans(f"{family} {name}={what}", {**config, name: value}, code, "" if is_usual else words)
            code = GOOD if name in optional else 2
            yield _plans(f"{family} {name}=null", {**config, name: None}, code, "" if name in optional else name)
            if name in config:
                yield _plans(f"{family} no {name}", without(config, name), code, "" if name in optional else name)


def _others() -> Iterator[Case]:
    for family, fields, words in CONTRADICTIONS:
        shown = ", ".join(f"{name}={str(value)[:20]}" for name, value in fields.items())
        seconds = 15.0 if 10**9 in fields.values() else 60.0
        yield _plans(f"{family} {shown!r}", {**CONFIGS[family], **fields}, 2, words, seconds=seconds)
    for number, (family, fields) in enumerate(IGNORED):
        yield _plans(f"{family} with what says nothing, {number}", {**CONFIGS[family], **fields}, GOOD, "")
    for family, config in CONFIGS.items():
        if family != "vit":
            yield _plans(f"{family} as it should be", config, GOOD, "")
    large = {**CONFIGS["llama"], "hidden_size": 16384, "num_attention_heads": 128, "num_hidden_layers": 200}
    yield _plans("llama too large for one device", large, NO_PLAN, "fit")
    yield _plans("byte order mark", raw("\ufeff" + json.dumps(CONFIGS["llama"])), ACCEPTED_OR_REFUSED, "")
    twice = json.dumps(CONFIGS["llama"]).replace("{", '{"hidden_size": 7, ', 1)
    yield _plans("duplicate keys", raw(twice), ACCEPTED_OR_REFUSED, "")


def _files(command: str, arguments: Sequence[str], what: str) -> Iterator[Case]:
    for name, (content, words) in FILES.items():
        yield Case(
            name=f"{what}: config.json {name}", command=command, arguments=arguments, words=words,
            # type: ignore[arg-type]
            files={"config.json": content},
        )  # fmt: skip
    for name, files, words in (
        ("missing", {}, "config.json"),
        ("in a folder without it", {"config.json/readme.md": "x"}, "config.json"),
    ):
        yield Case(name=f"{what}: config.json {name}", command=command, arguments=arguments, files=files, words=words)  # type: ignore[arg-type]


# Sizes that only torch's modules meet: `profile model` builds them.
TRACED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("llama", {"hidden_size": 7, "num_attention_heads": 3, "num_key_value_heads": 3},
        "hidden_size|num_attention_heads"),
    ("llama", {"hidden_act": "nonsense"}, "hidden_act"),
    ("llama", {"hidden_act": 7}, "hidden_act"),
    ("llama", {"hidden_act": None}, "hidden_act"),
    ("llama", {"rope_parameters": {"rope_type": "nonsense"}}, "rope"),
    ("llama", {"rope_parameters": "x"}, "rope"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": "x"}}, "rope|factor"),
    ("llama", {"rope_theta": "x"}, "rope"),
    ("llama", {"rope_theta": -1}, "rope"),
    ("llama", {"rms_norm_eps": "x"}, "rms_norm_eps"),
    ("llama", {"rms_norm_eps": -1}, "rms_norm_eps"),
    ("llama", {"attention_bias": "x"}, "attention_bias"),
    ("llama", {"initializer_range": "x"}, "initializer_range"),
    ("llama", {"head_dim": 15}, "head_dim"),
    ("llama", {"hidden_size": -64}, "hidden_size"),
    ("llama", {"hidden_size": "64"}, "hidden_size"),
    ("llama", {"num_hidden_layers": -1}, "num_hidden_layers"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers"),
    ("llama", {"vocab_size": 0}, "vocab_size"),
    ("llama", {"vocab_size": 10**15}, "vocab_size"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("llama", {"hidden_size": math.nan}, "hidden_size"),
    ("llama", {"model_type": "nonsense"}, "model_type"),
    ("llama", {"model_type": None}, "model_type"),
    ("llama", {"model_type": ["llama"]}, "model_type"),
    ("llama", {"dtype": "nonsense"}, "dtype"),
    ("mistral", {"sliding_window": "x"}, "sliding"),
    ("qwen3", {"num_attention_heads": 7}, "num_attention_heads|num_key_value_heads"),
    ("qwen3", {"layer_types": ["nonsense"]}, "layer_types"),
    ("gpt2", {"n_head": 7}, "n_head|n_embd|num_attention_heads"),
    ("gpt2", {"n_embd": 0}, "n_embd|hidden_size"),
    ("gpt2", {"activation_function": "nonsense"}, "activation_function"),
    ("gpt2", {"n_positions": -1}, "n_positions"),
    ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    ("mixtral", {"num_local_experts": 0}, "num_local_experts"),
    ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts"),
    ("deepseek_v3", {}, "deepseek_v3"),
    ("vit", {"patch_size": 3}, "patch_size"),
    ("vit", {"patch_size": 0}, "patch_size"),
    ("vit", {"patch_size": -2}, "patch_size"),
    ("vit", {"image_size": 0}, "image_size"),
    ("vit", {"image_size": -8}, "image_size"),
    ("vit", {"image_size": "8"}, "image_size"),
    ("vit", {"image_size": [8, 8]}, "image_size"),
    ("vit", {"num_channels": 0}, "num_channels"),
    ("vit", {"num_channels": -1}, "num_channels"),
    ("vit", {"num_labels": 0}, "num_labels|label"),
    ("vit", {"num_labels": -1}, "num_labels|label"),
    ("vit", {"num_labels": "ten"}, "num_labels|label"),
    ("vit", {"hidden_size": 63}, "hidden_size|num_attention_heads"),
    ("vit", {"hidden_size": 0}, "hidden_size"),
    ("vit", {"num_attention_heads": 7}, "num_attention_heads"),
    ("vit", {"num_hidden_layers": 0}, "num_hidden_layers"),
    ("vit", {"intermediate_size": "x"}, "intermediate_size"),
    ("vit", {"hidden_act": "nonsense"}, "hidden_act"),
    ("vit", {"qkv_bias": "x"}, "qkv_bias"),
)  # fmt: skip


def _traced() -> Iterator[Case]:
    for family, fields, words in TRACED:
        shown = ", ".join(f"{name}={str(value)[:30]}" for name, value in fields.items())
        yield Case(
            name=f"traced {family} {shown}", command="profile", arguments=("model", "config.json", "--json"),
            files={"config.json": written({**CONFIGS[family], **fields})}, words=words, quotes_exceptions=True,
        )  # fmt: skip
    yield Case(
        name="traced llama of a billion layers", command="profile", arguments=("model", "config.json", "--json"),
        files={"config.json": written({**CONFIGS["llama"], "num_hidden_layers": 10**9})}, words="num_hidden_layers",
        seconds=15,
    )  # fmt: skip
    yield Case(
        name="vit is planned by its sizes", command="plan", arguments=("--model", "config.json", *PLAN),
        files={"config.json": written(CONFIGS["vit"])}, words="", code=ACCEPTED_OR_REFUSED,
    )  # fmt: skip


CASES = (
    *_fields(),
    *_others(),
    *_files("plan", ("--model", "config.json", *PLAN), "plan"),
    *_files("plan", ("--model", ".", *PLAN), "plan, its folder"),
    *_files("profile", ("model", "config.json", "--json"), "profile"),
    *_traced(),
)
