"""What a model has beside its sizes: numbers that change no price, and that a training must not get wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiles.models.families import EXPERT_FAMILIES, LLAMA_FAMILIES
from profiles.models.profile import WorkloadSpec

ROTARY_FAMILIES = (*LLAMA_FAMILIES, *EXPERT_FAMILIES, "deepseek_v2", "deepseek_v3")
BASE, EPSILON = "rope_theta", "rms_norm_eps"
# What Megatron's --use-rope-scaling and transformers' "llama3" both scale by, beside the factor.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a configuration says of rotary positions, under either of its names."""
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return told if isinstance(told, Mapping) else {}


def base_of(config: Mapping[str, Any]) -> float | None:
    """The base of rotary positions; None where the configuration does not say."""
    base = rope_of(config).get(BASE, config.get(BASE))
    return None if base is None else float(base)


def scaling_of(config: Mapping[str, Any]) -> str:
    """How rotary positions are scaled, "default" where they are not."""
    rope = rope_of(config)
    return str(rope.get("rope_type", rope.get("type", "default")))


def unsaid(workload: WorkloadSpec) -> list[str]:
    """Fields that a model with rotary positions needs, and its configuration lacks."""
    config = workload.config
    if config.get("model_type") not in ROTARY_FAMILIES:
        return []
    return [BASE] * (base_of(config) is None) + [EPSILON] * (config.get(EPSILON) is None)


def unsaid_notes(workload: WorkloadSpec) -> tuple[str, ...]:
    """What has to be set in the config.json of an export, whose reader fills in its own numbers."""
    missing = unsaid(workload)
    if not missing:
        return ()
    return (f"the model's configuration lacks {' and '.join(missing)}: set them in config.json as it was published",)
