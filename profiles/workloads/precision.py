"""How products are computed: in full, on tensor cores with fewer bits, in 16 bits by autocast, or in 8 by torchao.

Parameters, gradients and the optimizer are fp32 in every precision; `fp16` has its loss scaled besides, by whoever
trains. `fp8` is bf16 but for the linears of the layers
between the first and the last: inputs and weights are rounded to e4m3 and gradients to e5m2 with one scale for each
tensor, found as it comes; products add up in 32 bits. Source: torchao.float8, "tensorwise".
"""

from __future__ import annotations

import contextlib
import importlib.util

import torch
from torch import nn

from profiles.errors import EnvironmentFailure
from profiles.models.profile import MIXED, SCALED

# In what the rest of a model is computed where its linears have a precision of their own.
BESIDE_PRODUCTS = {"tf32": "fp32", "fp8": "bf16"}
# Sides of what fp8 units multiply are multiples of this; a linear of other sides stays in 16 bits.
FP8_SIDE = 16
NO_TORCHAO = "precision fp8 needs torchao: pip install 'trainwright[compress]'"
# The first compute capabilities of NVIDIA's devices with tf32 (Ampere) and fp8 (Ada) in their tensor cores.
FIRST_CAPABILITY = {"tf32": (8, 0), "fp8": (8, 9)}


def computing(precision: str, device_kind: str) -> contextlib.AbstractContextManager[object]:
    """While entered, forward passes compute in `precision`; how products do holds on, for the backward passes after."""
    set_products(precision)
    return autocast(precision, device_kind)


def autocast(precision: str, device_kind: str) -> contextlib.AbstractContextManager[object]:
    """While entered, what 16 bits suffice for is computed in them, where `precision` is a mixed one."""
    return torch.autocast(device_kind, dtype=low_dtype(precision)) if precision in MIXED else contextlib.nullcontext()


def low_dtype(precision: str) -> torch.dtype:
    """What is computed with in a precision: 16 bits where it is a mixed one, else 32."""
    if precision not in MIXED:
        return torch.float32
    return torch.float16 if precision == SCALED else torch.bfloat16


def set_products(precision: str) -> None:
    """From now on, multiply fp32 numbers on tensor cores where `precision` is tf32, and in full where it is not.

    Convolutions too, which torch of itself computes in tf32 on GPUs whatever is said of products.
    """
    wanted = "high" if precision == "tf32" else "highest"
    if torch.get_float32_matmul_precision() != wanted:
        torch.set_float32_matmul_precision(wanted)
    if torch.cuda.is_initialized() and torch.backends.cudnn.allow_tf32 != (precision == "tf32"):
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


def lower(layer: nn.Module, precision: str, is_last: bool) -> nn.Module:
    """`layer` with its linears in 8 bits where `precision` says so; the model's last layer stays as it is.

    Frozen matrices are in 16 bits where these are computed with: no update would be lost in them.

    Raises: EnvironmentFailure where torchao is not installed.
    """
    if precision in MIXED:
        for parameter in layer.parameters():
            if not parameter.requires_grad and parameter.dim() > 1:
                parameter.data = parameter.data.to(low_dtype(precision))
    if precision != "fp8" or is_last:
        return layer
    if importlib.util.find_spec("torchao") is None:
        raise EnvironmentFailure(NO_TORCHAO)
    from torchao.float8 import convert_to_float8_training

    converted: nn.Module = convert_to_float8_training(layer, module_filter_fn=_has_fp8_sides)
    return converted


def _has_fp8_sides(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not (module.in_features % FP8_SIDE or module.out_features % FP8_SIDE)


def unavailable(precision: str, device_kind: str) -> str:
    """Why this machine cannot compute in `precision`, and what to use; or "". A CPU computes fp8, slowly."""
    if precision == "fp8" and importlib.util.find_spec("torchao") is None:
        return NO_TORCHAO
    if precision not in FIRST_CAPABILITY or (precision == "fp8" and device_kind == "cpu"):
        return ""
    if device_kind == "cpu":
        return f"precision {precision} is a mode of GPUs, but there is no GPU here: use fp32"
    first, own = FIRST_CAPABILITY[precision], torch.cuda.get_device_capability()
    if own >= first:
        return ""
    return f"precision {precision} needs compute capability {first[0]}.{first[1]}, not {own[0]}.{own[1]}: use bf16"
