"""Seconds of a GPU's convolutions at any shape: the products they amount to, with what is theirs alone. Torch-free.

`python -m profiles.laws.fit_operators TABLES` fits the constants, which lie in catalog/operators.toml.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.artifacts import STRICT
from profiles.laws.kernels import ALIGNED_BYTES, Array, Silicon, blend, wave_flops

Pass = Literal["forward", "data_gradient", "weight_gradient"]
PASSES: tuple[Pass, ...] = ("forward", "data_gradient", "weight_gradient")
# Filters that Winograd's transform is written for, and the side of the square of results that it makes at once.
WINOGRAD_FILTER, WINOGRAD_SIDE = 9.0, 4.0
# Groups of fewer channels make no products: all passes through memory.
DEPTHWISE_CHANNELS = 4.0
# Share of the plain units' rate that direct kernels reach, which narrow groups are left to where tiles would be mostly
# empty (assumed).
DIRECT_FRACTION = 0.5
HALF_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionConstants:
    """What convolutions take on matrix units, or without them.

    `*_fraction` of the best product's rate is reached by large ones. `depth`, `reuse`, `wave_share` and `blend` are as
    in KernelConstants. `winograd` is the speed of filters of 3 x 3 at stride 1 against their multiplications, where the
    transform pays; `strided` the speed of a data gradient at a stride, `dilated` that of filters with gaps, `unaligned`
    that of channels whose rows start at no multiple of 16 bytes, after padding. `traffic_fraction` of the bandwidth
    moves operands, each once; `depthwise_fraction` of it is what convolutions of single channels reach. `overhead_us`
    starts a kernel.
    """

    __pydantic_config__ = STRICT

    forward_fraction: float
    data_gradient_fraction: float
    weight_gradient_fraction: float
    depth: float
    reuse: float
    wave_share: float
    blend: float
    winograd: float
    strided: float
    unaligned: float
    dilated: float
    traffic_fraction: float
    depthwise_fraction: float
    overhead_us: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionShape:
    """Convolutions; positions of all axes are multiplied. Shapes: one entry per convolution, or broadcastable."""

    samples: Array
    channels_in: Array
    channels_out: Array
    groups: Array
    positions_in: Array
    positions_out: Array
    filter_positions: Array
    stride: Array
    gap: Array

    @property
    def flops(self) -> Array:
        """Multiply-adds of one pass, counted twice."""
        per_result = self.channels_in / self.groups * self.filter_positions
        return 2 * self.samples * self.positions_out * self.channels_out * per_result

    def elements(self) -> tuple[Array, Array, Array]:
        """Elements of the input, the filters and the result."""
        filters = self.channels_in / self.groups * self.channels_out * self.filter_positions
        images = (self.channels_in * self.positions_in, self.channels_out * self.positions_out)
        return self.samples * images[0], filters, self.samples * images[1]


def shape_of(dims: ArrayLike) -> ConvolutionShape:
    """Convolutions from rows of dims, as ListedOperator states them."""
    return ConvolutionShape(**dict(zip(ConvolutionShape.__slots__, np.asarray(dims, dtype=np.float64).T, strict=True)))


def convolution_seconds(
    which: Pass, shape: ConvolutionShape, silicon: Silicon, constants: ConvolutionConstants,
    on_matrix_units: ArrayLike = True,
) -> Array:  # fmt: skip
    """Seconds of convolutions on devices.

    Model: overhead + (the product's tiles in waves) joined with (input, filters and result through memory), or for
    groups a direct kernel on plain units where that is faster. As products
    of (m, n, k) per group: forward (places, channels out, filter), data gradient (places of the input, channels in,
    filter), weight gradient (channels out, filter, places). On matrix units channels are padded to 16 bytes.
    Shapes: all broadcast.
    Ignores: workspaces, algorithms tried, layouts (their copies are passes of their own).
    """
    m, n, k = _product_of(which, shape, silicon, on_matrix_units)
    column = {name: np.asarray(getattr(constants, name)) for name in ("depth", "reuse", "wave_share")}
    work = wave_flops(m, n, k, shape.groups, silicon, column)
    relative = _relative(which, shape, silicon, constants, on_matrix_units)
    rate = silicon.matmul_flops_per_second * silicon.achievable_fraction * relative
    moved = silicon.element_bytes * sum(shape.elements())
    single = _is_depthwise(shape)
    share = np.where(single, constants.depthwise_fraction, constants.traffic_fraction)
    moving = moved / (silicon.memory_bytes_per_second * share)
    busy = np.where(single, 0.0, work / rate)
    tiled = blend(busy, moving, np.asarray(constants.blend))
    direct = _direct(shape, moved, silicon, constants, on_matrix_units)
    return np.asarray(constants.overhead_us * 1e-6 + np.minimum(tiled, direct))


def _direct(
    shape: ConvolutionShape, moved: Array, silicon: Silicon, constants: ConvolutionConstants, on_matrix_units: ArrayLike
) -> Array:
    """Seconds of groups on plain units without tiles; of one group there is no such kernel."""
    # Plain units are stated against the peak in 16 bits, of which wider elements have their share.
    share = np.where(on_matrix_units, silicon.vector_fraction * silicon.element_bytes / HALF_BYTES, 1.0)
    plain = silicon.matmul_flops_per_second * share * DIRECT_FRACTION
    moving = moved / (silicon.memory_bytes_per_second * constants.depthwise_fraction)
    seconds = blend(shape.flops / plain, moving, np.asarray(constants.blend))
    return np.asarray(np.where((shape.groups > 1) & ~_is_depthwise(shape), seconds, np.inf))


def _is_depthwise(shape: ConvolutionShape) -> NDArray[np.bool_]:
    return np.asarray((shape.groups > 1) & (shape.channels_in / shape.groups < DEPTHWISE_CHANNELS))


def _padded(channels: Array, silicon: Silicon, on_matrix_units: ArrayLike) -> Array:
    vector = ALIGNED_BYTES / silicon.element_bytes
    return np.asarray(np.where(on_matrix_units, np.ceil(channels / vector) * vector, channels))


def _product_of(
    which: Pass, shape: ConvolutionShape, silicon: Silicon, on_matrix_units: ArrayLike
) -> tuple[Array, Array, Array]:
    """Sizes of the product of one group."""
    channels_in = _padded(shape.channels_in / shape.groups, silicon, on_matrix_units)
    channels_out = _padded(shape.channels_out / shape.groups, silicon, on_matrix_units)
    places = shape.samples * shape.positions_out
    if which == "forward":
        return places, channels_out, channels_in * shape.filter_positions
    if which == "data_gradient":
        # The filter's places that meet a place of the input at this stride.
        return (
            shape.samples * shape.positions_in,
            channels_in,
            channels_out * np.maximum(shape.filter_positions * shape.positions_out / shape.positions_in, 1.0),
        )
    return channels_out, channels_in * shape.filter_positions, places


def _relative(
    which: Pass, shape: ConvolutionShape, silicon: Silicon, constants: ConvolutionConstants, on_matrix_units: ArrayLike
) -> Array:
    """Rate of a pass against the best product's."""
    share = getattr(constants, f"{which}_fraction")
    is_square = (shape.filter_positions == WINOGRAD_FILTER) & (shape.stride == 1) & (shape.groups == 1)
    side = np.sqrt(shape.positions_out)
    filled = (side / (np.ceil(side / WINOGRAD_SIDE) * WINOGRAD_SIDE)) ** 2
    gain = np.where(is_square & ~np.asarray(on_matrix_units), np.maximum(constants.winograd * filled, 1.0), 1.0)
    vector = ALIGNED_BYTES / silicon.element_bytes
    is_odd = (np.mod(shape.channels_in, vector) > 0) | (np.mod(shape.channels_out, vector) > 0)
    odd = np.where(np.asarray(on_matrix_units) & is_odd, constants.unaligned, 1.0)
    strided = constants.strided if which == "data_gradient" else 1.0
    gap = np.where(shape.gap > 1, constants.dilated, 1.0)
    return np.asarray(share * gain * odd * gap * np.where(shape.stride > 1, strided, 1.0))
