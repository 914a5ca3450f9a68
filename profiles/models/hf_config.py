"""Hugging Face configurations, read as the records of their families.

Fields that are not read may be anything. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeAlias

from profiles.artifacts import validate, validate_given
from profiles.errors import ArtifactError, UnknownNameError
from profiles.inputs.foreign import shown
from profiles.models.hf_records import (
    DeepseekConfig,
    Gpt2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen3MoeConfig,
    QwenConfig,
    VitConfig,
)

FAMILIES: dict[str, type[Gpt2Config] | type[LlamaConfig] | type[VitConfig]] = {
    "gpt2": Gpt2Config,
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": QwenConfig,
    "qwen3": QwenConfig,
    "mixtral": MixtralConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "deepseek_v2": DeepseekConfig,
    "deepseek_v3": DeepseekConfig,
    "vit": VitConfig,
}


Config: TypeAlias = Gpt2Config | LlamaConfig | VitConfig


def checked(name: str, config: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> Config:
    """What the configuration of a model says; fields that must be there and are not are those of `usual`.

    Raises: UnknownNameError for an unknown family; ArtifactError that names the field, its value and the rule.
    """
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        raise UnknownNameError("model_type", family, FAMILIES)
    kind, where = FAMILIES[family], f"model {name}"
    filled = {key: value for key, value in (usual or {}).items() if key in _needed(kind)} | dict(config)
    record: Config = validate(_read(kind, filled), kind, where)
    _hold_to_rules(record, where)
    return record


def check_given(name: str, config: Mapping[str, Any]) -> None:
    """Check what a configuration says, whatever it leaves to the library that builds the model; any family may be.

    Raises: ArtifactError that names the field, its value and the rule.
    """
    kind = FAMILIES.get(str(config.get("model_type", "")))
    if kind is not None:
        record: Config | None = validate_given(_read(kind, config), kind, f"model {name}")
        if record is not None:
            _hold_to_rules(record, f"model {name}")


def _needed(kind: type[Config]) -> set[str]:
    return {field.name for field in fields(kind) if field.default is MISSING}


def _read(kind: type[Config], config: Mapping[str, Any]) -> dict[str, Any]:
    others: Mapping[str, str] = getattr(kind, "other_names", {})
    named = {own: config[other] for own, other in others.items() if other in config}
    return named | {field.name: config[field.name] for field in fields(kind) if field.name in config}


def _hold_to_rules(record: Config, where: str) -> None:
    for field, rule in record.broken():
        raise ArtifactError(f"{where}: at {field}: {shown(getattr(record, field))} {rule}")
