"""Seconds of a GPU's kernels that only pass over memory: element-wise, norms, pooling, lookups. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from profiles.artifacts import STRICT
from profiles.laws.kernels import Array

# Kernels that read their operands more than once, by what their names start with, and the constant that says how often.
REPEATED = {
    "native_batch_norm_backward": "norm_backward", "native_layer_norm_backward": "norm_backward",
    "native_group_norm_backward": "norm_backward", "cudnn_batch_norm_backward": "norm_backward",
    "native_batch_norm": "norm_forward", "_native_batch_norm_legit": "norm_forward", "cudnn_batch_norm": "norm_forward",
    "native_layer_norm": "norm_forward", "native_group_norm": "norm_forward",
    "embedding_dense_backward": "scatter", "index_put_": "scatter", "index_add_": "scatter", "sort": "sort",
    "max_pool2d_with_indices_backward": "scatter",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PassConstants:
    """What passes over memory take: `traffic_fraction` of the bandwidth, `overhead_us` to start a kernel.

    The others say by how much more than its operands once each a kind of kernel moves: norms forward and backward,
    gradients of lookups, sorting.
    """

    __pydantic_config__ = STRICT

    traffic_fraction: float
    overhead_us: float
    norm_forward: float
    norm_backward: float
    scatter: float
    sort: float
    source: str


def repeats(names: list[str], constants: PassConstants) -> Array:
    """How often each kernel's bytes pass, by its name."""
    return np.array([getattr(constants, REPEATED[name]) if name in REPEATED else 1.0 for name in names])


def pass_seconds(
    num_bytes: ArrayLike, memory_bytes_per_second: ArrayLike, constants: PassConstants, repeated: ArrayLike = 1.0
) -> Array:
    """Seconds of kernels that read and write `num_bytes`, `repeated` times. Shapes: all broadcast."""
    moved = np.asarray(num_bytes, dtype=np.float64) * np.asarray(repeated, dtype=np.float64)
    rate = np.asarray(memory_bytes_per_second, dtype=np.float64) * constants.traffic_fraction
    return np.asarray(constants.overhead_us * 1e-6 + moved / rate)
