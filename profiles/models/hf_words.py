"""Words of Hugging Face configurations that transformers looks up: checked against what it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiles.errors import ArtifactError
from profiles.inputs.foreign import shown


def both_names(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`config` with every field under both of its names, where transformers knows it by two."""
    pairs = [*names.items(), *((own, other) for other, own in names.items())]
    return {own: config[other] for own, other in pairs if other in config} | dict(config)


def check_words(name: str, config: Mapping[str, Any]) -> None:
    """Check the words of a configuration that transformers looks up: without it, it says only that it has none such.

    Raises: ArtifactError.
    """
    import torch
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ArtifactError(f"model {name}: at rope_parameters: {shown(rope)} should be an object")
    kinds = {"default", *ROPE_INIT_FUNCTIONS}
    for field, value, known in (
        *((field, config[field], ACT2FN) for field in ("hidden_act", "activation_function") if field in config),
        *(("rope_parameters", rope[field], kinds) for field in ("rope_type", "type") if field in rope),
    ):
        if not isinstance(value, str) or value not in known:
            raise ArtifactError(f"model {name}: at {field}: {shown(value)} is not known to transformers")
    for field, value in (("rope_theta", config.get("rope_theta")), ("rope_parameters", rope.get("rope_theta"))):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise ArtifactError(f"model {name}: at {field}: {shown(value)} should be a number above 0")
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype is not None and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise ArtifactError(f"model {name}: at dtype: {shown(dtype)} is not a dtype of torch")
