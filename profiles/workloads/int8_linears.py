"""Linears in 8 bits: rounded while a model trains, quantised by torchao afterwards.

Weights, int8 or fp8 (e4m3), have one scale for each row (output); with `int8-dynamic` activations one for each token,
found as they come.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from profiles.errors import EnvironmentFailure
from profiles.laws.curves import LINEAR_SCHEMES

INT8_MAX = 127
SMALLEST = 1e-12


def can_quantise() -> bool:
    """Whether torchao is installed."""
    return importlib.util.find_spec("torchao") is not None


def quantise(model: nn.Module, scheme: str) -> None:
    """Turn every linear of the model into 8 bits, in place: its weights alone, or its input too while it runs.

    Raises: EnvironmentFailure where torchao is not installed.
    """
    if not can_quantise():
        raise EnvironmentFailure(f"{scheme} needs torchao: pip install 'trainwright[compress]'")
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    kinds = (Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Float8WeightOnlyConfig)
    quantize_(model, dict(zip(LINEAR_SCHEMES, kinds, strict=True))[scheme]())


def rounded(values: Tensor) -> Tensor:
    """What int8 leaves of each row of `values`; its gradient is that of `values`. Shapes: (..., row)."""
    with torch.no_grad():
        scale = values.abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST) / INT8_MAX
        error = (values / scale).round_() * scale - values
    return values + error
