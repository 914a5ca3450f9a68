"""Memory-bound operators on images: batch and group norm, pooling, resizing, padding."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from profiles.measure.operands import Operands
from profiles.measure.timing import Action

aten = torch.ops.aten
NUM_GROUPS = 4
EPSILON, MOMENTUM = 1e-5, 0.1
ALL_TRUE = [True, True, True]


def _channels(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], dtype=torch.float32, device=x.device)


def _batch_norm(operands: Operands) -> Action:
    x = operands.images()
    one, mean, variance = (_channels(x) for _ in range(3))
    return lambda: aten.native_batch_norm(x, one, one, mean, variance, True, MOMENTUM, EPSILON)


def _batch_norm_backward(operands: Operands) -> Action:
    x = operands.images()
    one = _channels(x)
    return lambda: aten.native_batch_norm_backward(x, x, one, one, one, one, one, True, EPSILON, ALL_TRUE)


def _group_norm(operands: Operands) -> Action:
    x = operands.images()
    one, (count, channels, *sides) = _channels(x).to(x.dtype), x.shape
    groups = math.gcd(NUM_GROUPS, channels)
    return lambda: aten.native_group_norm(x, one, one, count, channels, math.prod(sides), groups, EPSILON)


def _group_norm_backward(operands: Operands) -> Action:
    x = operands.images()
    one, (count, channels, *sides) = _channels(x).to(x.dtype), x.shape
    groups, places = math.gcd(NUM_GROUPS, channels), math.prod(sides)
    _, mean, deviation = aten.native_group_norm(x, one, one, count, channels, places, groups, EPSILON)
    return lambda: aten.native_group_norm_backward(
        x, x, mean, deviation, one, count, channels, places, groups, ALL_TRUE
    )


def _pooling(x: Tensor) -> tuple[list[int], list[int], list[int]]:
    """Window, step and padding of the usual pooling, where the image is large enough for it."""
    return ([3, 3], [2, 2], [1, 1]) if x.shape[-1] > 1 else ([1, 1], [1, 1], [0, 0])


def _max_pool(operands: Operands) -> Action:
    x = operands.images()
    window, step, padding = _pooling(x)
    return lambda: aten.max_pool2d_with_indices(x, window, step, padding)


def _max_pool_backward(operands: Operands) -> Action:
    x = operands.images()
    window, step, padding = _pooling(x)
    pooled, places = aten.max_pool2d_with_indices(x, window, step, padding)
    return lambda: aten.max_pool2d_with_indices_backward(pooled, x, window, step, padding, [1, 1], False, places)


def _resize(operands: Operands) -> Action:
    x = operands.images()
    sides = [2 * side for side in x.shape[2:]]
    return lambda: aten.upsample_bilinear2d(x, sides, False)


def _resize_backward(operands: Operands) -> Action:
    x = operands.images()
    sides = [2 * side for side in x.shape[2:]]
    larger = aten.upsample_bilinear2d(x, sides, False)
    return lambda: aten.upsample_bilinear2d_backward(larger, sides, x.shape, False)


def _pad(operands: Operands) -> Action:
    x = operands.images()
    return lambda: functional.pad(x, (1, 1, 1, 1))


VISION_OPERATORS: dict[str, Callable[[Operands], Action]] = {
    "constant_pad_nd": _pad,
    "max_pool2d_with_indices": _max_pool,
    "max_pool2d_with_indices_backward": _max_pool_backward,
    "native_batch_norm": _batch_norm,
    "native_batch_norm_backward": _batch_norm_backward,
    "native_group_norm": _group_norm,
    "native_group_norm_backward": _group_norm_backward,
    "upsample_bilinear2d": _resize,
    "upsample_bilinear2d_backward": _resize_backward,
}
