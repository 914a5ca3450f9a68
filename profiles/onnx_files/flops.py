"""FLOPs of ONNX's operators: multiply-adds of products counted twice, as torch's counter has them; others count 0.

Causal masking is not subtracted, nor are zeros. Shapes below are ONNX's own order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Shape = tuple[int, ...]
Attributes = dict[str, Any]
Formula = Callable[[Sequence[Shape], Sequence[Shape], Attributes], float]


def operator_flops(kind: str, inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes) -> float:
    """FLOPs of one operator; an input that is left out has the shape ().

    Raises: ValueError where the shapes are not those of such an operator.
    """
    formula = FORMULAS.get(kind)
    if formula is None:
        return 0.0
    try:
        return float(formula(inputs, outputs, attributes))
    except (IndexError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"the shapes {[*inputs]} do not suit a {kind}") from error


def _matmul(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes) -> float:
    return 2 * math.prod(outputs[0]) * inputs[0][-2 if attributes.get("transA") else -1]


def _packed_matmul(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes) -> float:
    """ONNX Runtime's product with weights of 4 bits, whose sizes stand in attributes."""
    return 2 * math.prod(outputs[0]) * int(attributes["K"])


def _gemm(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes) -> float:
    inner = inputs[0][0 if attributes.get("transA") else 1]
    return 2 * math.prod(outputs[0]) * inner


def _conv(weight: int) -> Formula:
    """A convolution whose weights (out, in / groups, *kernel) are its input number `weight`."""

    def flops(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes) -> float:
        return 2 * math.prod(outputs[0]) * math.prod(inputs[weight][1:])

    return flops


def _conv_transpose(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes) -> float:
    # Weights are (in, out / groups, *kernel): every input meets as many.
    return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _recurrent(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes) -> float:
    # Data are (sequence, batch, in), or with batch first; weights (directions, gates x hidden, in), then hidden.
    steps = math.prod(inputs[0][:2])
    return 2 * steps * (math.prod(inputs[1]) + math.prod(inputs[2]))


def _einsum(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes) -> float:
    """Two operands as one product; more are taken one after the other; one, or none summed over, multiply nothing."""
    stated = attributes["equation"]
    # A damaged file may have a number there, which is an equation of no operand.
    equation = (stated.decode() if isinstance(stated, bytes) else str(stated)).replace(" ", "")
    terms, _, result = equation.partition("->")
    labels = [_labels(term, len(shape)) for term, shape in zip(terms.split(","), inputs, strict=True)]
    sizes: dict[str, int] = {}
    for names, shape in zip(labels, inputs, strict=True):
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    wanted = set(_labels(result, len(outputs[0]))) if "->" in equation else _once(labels)
    total, left = 0.0, set(labels[0])
    for place, names in enumerate(labels[1:], start=1):
        met = left | set(names)
        later = wanted.union(*map(set, labels[place + 1 :]))
        if met - later:
            total += 2 * math.prod(sizes[name] for name in met)
        left = met & later
    return total


def _once(labels: Sequence[Sequence[str]]) -> set[str]:
    """Labels that stand once, which an equation without a result keeps."""
    every = [name for names in labels for name in names]
    return {name for name in every if every.count(name) == 1 or name.startswith("...")}


def _labels(term: str, rank: int) -> list[str]:
    """The labels of a term; an ellipsis stands for as many as are missing, the last first."""
    before, dots, after = term.partition("...")
    if not dots:
        return list(before)
    hidden = rank - len(before) - len(after)
    return [*before, *(f"...{hidden - place}" for place in range(hidden)), *after]


def _attention(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Attributes) -> float:
    """Both products of attention: queries x keys, and what comes of that x values."""
    query, key, value = inputs[:3]
    if len(query) == 4:
        batch, heads, queries, size = query
        keys, value_size = key[2], value[3]
    else:
        batch, queries, hidden = query
        heads = int(attributes["q_num_heads"])
        size, value_size = hidden // heads, value[2] // int(attributes["kv_num_heads"])
        keys = key[1]
    if len(inputs) > 4 and len(inputs[4]) == 4:
        keys += inputs[4][2]
    return 2 * batch * heads * queries * keys * (size + value_size)


FORMULAS: dict[str, Formula] = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "com.microsoft.FusedMatMul": _matmul,
    "com.microsoft.MatMulNBits": _packed_matmul,
    "Gemm": _gemm,
    "Conv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "DeformConv": _conv(1),
    "ConvTranspose": _conv_transpose,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Einsum": _einsum,
    "Attention": _attention,
}
