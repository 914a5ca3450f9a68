"""Arithmetic of sizes: the small tensors from which a graph computes shapes, followed without running the graph.

Each operator here is written out in numpy, and what is larger than `MOST_NUMBERS` is not followed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Attributes = dict[str, Any]
# Shapes have a handful of numbers, positions and masks a few thousand.
MOST_NUMBERS = 4096


def follow(kind: str, inputs: list[Array | None], attributes: Attributes) -> Array | None:
    """What an operator makes of small tensors; None where it is not followed, or its inputs do not suit it.

    An input is None where it is left out.
    """
    own = _OPERATORS.get(kind)
    if own is None:
        return None
    try:
        with np.errstate(all="ignore"):
            result = np.asarray(own(inputs, attributes))
    except (ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError, MemoryError):
        return None
    return result if result.size <= MOST_NUMBERS else None


def _slice(inputs: list[Array | None], attributes: Attributes) -> Array:
    data, starts, ends = inputs[0], *(_list(part) for part in inputs[1:3])
    assert data is not None
    axes = _list(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
    steps = _list(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # A step backwards to the least number there is means the whole.
        cut[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return data[tuple(cut)]


def _list(array: Array | None) -> list[int]:
    if array is None:
        raise ValueError
    return [int(number) for number in array.reshape(-1)]


def _squeeze(inputs: list[Array | None], attributes: Attributes) -> Array:
    axes = _axes(inputs, attributes)
    return np.squeeze(_first(inputs), axis=tuple(axes) if axes else None)


def _unsqueeze(inputs: list[Array | None], attributes: Attributes) -> Array:
    return np.expand_dims(_first(inputs), tuple(_axes(inputs, attributes)))


def _axes(inputs: list[Array | None], attributes: Attributes) -> list[int]:
    """The axes of an operator: an input since opset 13, an attribute before."""
    given = inputs[1] if len(inputs) > 1 else None
    return list(attributes.get("axes", ())) if given is None else _list(given)


def _first(inputs: list[Array | None]) -> Array:
    if not inputs or inputs[0] is None:
        raise ValueError
    return inputs[0]


def _reshape(inputs: list[Array | None], attributes: Attributes) -> Array:
    data, wanted = _first(inputs), _list(inputs[1])
    if not attributes.get("allowzero"):
        wanted = [data.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return data.reshape(wanted)


def _filled(inputs: list[Array | None], attributes: Attributes) -> Array:
    shape = _list(inputs[0])
    _check_size(shape)
    value = attributes.get("value")
    return np.full(shape, 0.0 if value is None else value.reshape(-1)[0])


def _range(inputs: list[Array | None], attributes: Attributes) -> Array:
    start, stop, step = (float(_first([part]).reshape(-1)[0]) for part in inputs[:3])
    _check_size([int((stop - start) / step)])
    return np.arange(start, stop, step).astype(_first(inputs).dtype)


def _expand(inputs: list[Array | None], attributes: Attributes) -> Array:
    shape = np.broadcast_shapes(_first(inputs).shape, tuple(_list(inputs[1])))
    _check_size(list(shape))
    return np.broadcast_to(_first(inputs), shape)


def _tile(inputs: list[Array | None], attributes: Attributes) -> Array:
    times = _list(inputs[1])
    _check_size([*times, *_first(inputs).shape])
    return np.tile(_first(inputs), times)


def _check_size(shape: list[int]) -> None:
    total = 1
    for size in shape:
        total *= size
        if size < 0 or total > MOST_NUMBERS:
            raise ValueError


def _divide(inputs: list[Array | None], attributes: Attributes) -> Array:
    left, right = _pair(inputs)
    # Whole numbers are cut off towards zero.
    is_whole = np.issubdtype(left.dtype, np.integer)
    return np.trunc(left / right).astype(left.dtype) if is_whole and np.all(right) else left / right


def _pair(inputs: list[Array | None]) -> tuple[Array, Array]:
    return _first(inputs), _first(inputs[1:])


def _cast(inputs: list[Array | None], attributes: Attributes) -> Array:
    # ONNX's numbers of the types that shapes are computed in.
    types = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}
    return _first(inputs).astype(types[attributes["to"]])


def _reduced(function: Callable[..., Any]) -> Callable[[list[Array | None], Attributes], Any]:
    def reduce(inputs: list[Array | None], attributes: Attributes) -> Any:
        axes = _axes(inputs, attributes)
        keeps = bool(attributes.get("keepdims", 1))
        return function(_first(inputs), axis=tuple(axes) or None, keepdims=keeps)

    return reduce


def _by_pairs(function: Callable[[Array, Array], Any]) -> Callable[[list[Array | None], Attributes], Any]:
    return lambda inputs, attributes: function(*_pair(inputs))


def _by_one(function: Callable[[Array], Any]) -> Callable[[list[Array | None], Attributes], Any]:
    return lambda inputs, attributes: function(_first(inputs))


_OPERATORS: dict[str, Callable[[list[Array | None], Attributes], Any]] = {
    "Identity": _by_one(lambda data: data),
    "Neg": _by_one(np.negative),
    "Abs": _by_one(np.abs),
    "Not": _by_one(np.logical_not),
    "Floor": _by_one(np.floor),
    "Ceil": _by_one(np.ceil),
    "Sqrt": _by_one(np.sqrt),
    "Add": _by_pairs(np.add),
    "Sub": _by_pairs(np.subtract),
    "Mul": _by_pairs(np.multiply),
    "Mod": _by_pairs(np.mod),
    "Div": _divide,
    "Max": _by_pairs(np.maximum),
    "Min": _by_pairs(np.minimum),
    "Equal": _by_pairs(np.equal),
    "Greater": _by_pairs(np.greater),
    "Less": _by_pairs(np.less),
    "GreaterOrEqual": _by_pairs(np.greater_equal),
    "LessOrEqual": _by_pairs(np.less_equal),
    "And": _by_pairs(np.logical_and),
    "Or": _by_pairs(np.logical_or),
    "Where": lambda inputs, attributes: np.where(_first(inputs), *_pair(inputs[1:])),
    "Concat": lambda inputs, attributes: np.concatenate(
        [_first([part]) for part in inputs], axis=attributes.get("axis", 0)
    ),
    "Gather": lambda inputs, attributes: np.take(
        _first(inputs), _pair(inputs)[1].astype(np.int64), axis=attributes.get("axis", 0)
    ),
    "Cast": _cast,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Transpose": lambda inputs, attributes: np.transpose(_first(inputs), attributes.get("perm")),
    "ConstantOfShape": _filled,
    "Range": _range,
    "Expand": _expand,
    "Tile": _tile,
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
}
