"""What a kernel is: a product of some sizes, fused attention, or memory-bound work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from profiles.models.operators import Kind


def classify(name: str, args: tuple[Any, ...], outputs: Sequence[Tensor]) -> tuple[Kind, str, tuple[int, ...]]:
    """Kind, layout and dims of a kernel: products by their sizes, fused attention by its own, the rest memory-bound."""
    if name in ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm"):
        a, b = (args[1], args[2]) if name in ("addmm", "baddbmm") else (args[0], args[1])
        batch = a.shape[0] if a.dim() == 3 else 1
        return "matmul", _letter(a) + _letter(b), (batch, a.shape[-2], b.shape[-1], a.shape[-1])
    if name == "_grouped_mm":
        return _grouped(args[0], args[1])
    if name in ("convolution", "convolution_backward"):
        return _convolution(name, args, outputs)
    if name in ("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward"):
        return _recurrent(name, args)
    if "dot_product" in name or name.startswith(("_flash_attention", "_efficient_attention")):
        query, key = (args[1], args[2]) if name.endswith("backward") else (args[0], args[1])
        causal = any(arg is True for arg in args)
        batch, heads, queries, size = query.shape
        return "attention", "causal" if causal else "full", (batch, heads, queries, key.shape[-2], size)
    return "memory", "", ()


def _convolution(name: str, args: tuple[Any, ...], outputs: Sequence[Tensor]) -> tuple[Kind, str, tuple[int, ...]]:
    """A convolution as the product it amounts to; its backward pass is one such product per gradient asked for.

    Model: each weight is used once for each place of the smaller image of a pair: of the result, or of what a
    transposed convolution takes.
    """
    if name == "convolution":
        image, weight, result, transposed, products = args[0], args[1], outputs[0], args[6], 1
    else:
        result, image, weight, transposed, products = args[0], args[1], args[2], args[7], sum(args[-1][:2])
    smaller = image if transposed else result
    positions = smaller.shape[0] * smaller.shape[2:].numel()
    return "matmul", "conv", (products, positions, weight.shape[0], weight[0].numel())


def _recurrent(name: str, args: tuple[Any, ...]) -> tuple[Kind, str, tuple[int, ...]]:
    """A recurrent layer as the products of all of its steps; its backward pass has two for each.

    Shapes: the first argument is (step, sample, input); weights are (gates times hidden, input or hidden).
    """
    inputs, of_input, of_hidden = args[0], args[1], args[2]
    steps = inputs.shape[0] * inputs.shape[1]
    products = 2 if name.endswith("backward") else 1
    return "matmul", "rnn", (products, steps, of_input.shape[0], of_input.shape[1] + of_hidden.shape[1])


def _grouped(a: Tensor, b: Tensor) -> tuple[Kind, str, tuple[int, ...]]:
    """Products of groups of rows, each with a matrix of its own; or of groups of columns, which are summed over."""
    if a.dim() == 2 and b.dim() == 3:
        return "matmul", "grouped", (1, a.shape[0], b.shape[-1], a.shape[1])
    if a.dim() == 2:
        return "matmul", "grouped", (1, a.shape[0], b.shape[-1], a.shape[1])
    return "matmul", "grouped", (a.shape[0] if b.dim() == 3 else 1, a.shape[-2], b.shape[-1], a.shape[-1])


def _letter(matrix: Tensor) -> str:
    # "n": rows are contiguous, "t": columns are, as BLAS calls them.
    return "n" if matrix.stride(-1) == 1 or matrix.shape[-1] == 1 else "t"
