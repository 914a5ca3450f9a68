"""Kernels whose own rule for shapes is asked what they give for fake tensors, past torch's rules around it.

Torch decomposes many kernels under fake tensors, or has rules of its own for them, which takes a hundred times as long.
Of those named here both say the same: shapes, strides, types and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from profiles.workloads.fake_tensors import FakeTensorMode, fake_of, in_kernel_invocation_manager, without_modes

CPU = torch.device("cpu")
# By name, those of the default overload first.
ASKED = frozenset(
    f"aten.{name}" if "." in name else f"aten.{name}.default"
    for name in (
        # Products and attention.
        "mm", "bmm", "addmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        # Views, and copies of them.
        "alias", "detach", "expand", "permute", "select.int", "slice.Tensor", "split.Tensor", "split_with_sizes",
        "squeeze.dim", "t", "transpose.int", "unbind.int", "unsqueeze", "view", "_unsafe_view", "cat", "clone",
        "constant_pad_nd", "roll", "select_backward", "slice_backward", "stack", "_to_copy",
        # Number by number.
        "add.Scalar", "add.Tensor", "bitwise_and.Tensor", "bitwise_not", "clamp", "cos", "div.Scalar", "div.Tensor",
        "eq.Scalar", "eq.Tensor", "exp", "floor", "ge.Scalar", "gelu", "gelu_backward", "gt.Scalar", "gt.Tensor",
        "le.Scalar", "le.Tensor", "log", "lt.Scalar", "lt.Tensor", "masked_fill.Scalar", "maximum", "minimum",
        "mul.Scalar", "mul.Tensor", "ne.Scalar", "neg", "pow.Tensor_Scalar", "relu", "rsqrt", "rsub.Scalar", "sigmoid",
        "sigmoid_backward", "silu", "silu_backward", "sin", "sqrt", "sub.Tensor", "tanh", "tanh_backward",
        "threshold_backward", "where.self",
        # Along a dimension.
        "_log_softmax", "_log_softmax_backward_data", "_safe_softmax", "_softmax", "_softmax_backward_data", "cumsum",
        "embedding", "embedding_dense_backward", "gather", "mean.dim", "native_batch_norm_backward",
        "native_layer_norm_backward", "nll_loss_backward", "nll_loss_forward", "sum", "sum.dim_IntList",
        "upsample_bilinear2d", "upsample_bilinear2d_backward",
    )
)  # fmt: skip
# Their strides along sides of 1, which say nothing, differ.
VIEWS = ("aten.view.default", "aten._unsafe_view.default")


def is_asked(func: Any) -> bool:
    """Whether a kernel's own rule tells what it gives."""
    return str(func) in ASKED


def asked(fake: FakeTensorMode, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a kernel gives for fake tensors of the CPU under a mode, by its own rule; None where that does not tell."""
    if "device" in kwargs:
        return None
    try:
        with in_kernel_invocation_manager(fake):
            made = func(*args, **kwargs)
    except Exception:  # torch's own rules say it in the words that people know
        return None
    if isinstance(made, Tensor) and str(func) in VIEWS and 1 in made.shape:
        return None
    with without_modes():
        if isinstance(made, Tensor):
            return fake_of(fake, made, CPU)
        return type(made)(None if one is None else fake_of(fake, one, CPU) for one in made)
