"""Seconds of a GPU's attention at any shape, fused or not, by kernel: with the constants of profiles/laws/kernels."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from profiles.laws.kernels import (
    ALIGNED_BYTES,
    Array,
    Columns,
    KernelConstants,
    Layout,
    Silicon,
    blend,
    is_aligned,
    matmul_seconds,
    sustained_share,
)

Phase = Literal["forward", "backward"]
PRODUCTS: dict[Phase, float] = {"forward": 2.0, "backward": 5.0}
# Tensors of the size of queries or keys that pass through memory.
ATTENTION_PASSES: dict[Phase, float] = {"forward": 1.0, "backward": 3.0}
KEY_BLOCK = 128.0
# Up to this head size the units are filled; at WIDE they run at `attention_*_wide`.
NARROW, WIDE = 128.0, 192.0
# Fused kernels are written for these head sizes, others are computed as the next; cuDNN's in steps of its own.
HEAD_SIZES, HEAD_STEP, CUDNN_STEP = (32.0, 64.0, 96.0, 128.0, 192.0, 256.0), 64.0, 16.0
# Heads whose rows cannot be loaded in vectors are copied into longer ones, and results back: a read and a write.
PADDING_PASSES = 2.0


def attention_seconds(
    phase: Phase,
    kernel: str,
    batch: ArrayLike,
    heads: ArrayLike,
    queries: ArrayLike,
    keys: ArrayLike,
    qk_head_dim: ArrayLike,
    v_head_dim: ArrayLike,
    silicon: Silicon,
    *,
    kv_heads: ArrayLike | None = None,
    causal: ArrayLike = True,
    constants: dict[str, KernelConstants] | None = None,
) -> Array:
    """Seconds of attention; of "unfused" the batched products alone, over the whole square. 0 where a size is 0.

    Model: blocks of queries (backward: of keys) over the multiprocessors, the mean one joined with the longest, each
    query and key costing its products and its softmax, which partly overlap; joined with the tensors through memory.
    Heads of a size that a kernel is not written for are computed as the next larger, and padded where their rows are no
    multiples of 16 bytes.
    Shapes: all broadcast. `kernel`: "unfused" or one of KernelConstants.kernels, "flash" where the version is unknown;
    `kv_heads` defaults to `heads`; a causal mask halves the pairs, of fewer keys than queries as well.
    Ignores: dropout, biases, lengths that differ within a batch.
    Raises: KeyError for an unknown kernel.
    """
    b, h, q, s, dqk, dv = (
        np.asarray(size, dtype=np.float64) for size in (batch, heads, queries, keys, qk_head_dim, v_head_dim)
    )
    exists = b * h * q * s * (dqk + dv) > 0
    if kernel == "unfused":
        return np.where(exists, _unfused_seconds(phase, b * h, q, s, dqk, dv, silicon, constants), 0.0)
    seconds = _fused_seconds(phase, kernel, b, h, q, s, dqk, dv, silicon, kv_heads, causal, constants)
    return np.asarray(np.where(exists, seconds, 0.0))


def _fused_seconds(
    phase: Phase, kernel: str, b: Array, h: Array, q: Array, s: Array, dqk: Array, dv: Array, silicon: Silicon,
    kv_heads: ArrayLike | None, causal: ArrayLike, constants: dict[str, KernelConstants] | None,
) -> Array:  # fmt: skip
    """Scores, softmax and weighted values in one kernel, and in backward their gradients."""
    column = Columns(silicon, constants)
    block = column["attention_block"] if phase == "forward" else np.asarray(KEY_BLOCK)
    outer, inner = (q, s) if phase == "forward" else (s, q)
    # A block on the diagonal is computed whole.
    masked = np.minimum(q, s) * q / 2
    masked = np.where(causal, masked - np.minimum(masked, q * block / 2), 0.0)
    ramp = column["attention_ramp"]
    pairs = b * h * (q * s - masked + outer * ramp)
    longest = np.minimum(block, outer) * (inner + ramp) * silicon.num_multiprocessors
    spread = blend(pairs, longest, column["attention_blend"])
    aligned = is_aligned(dqk, silicon) & is_aligned(dv, silicon)
    own = sum(np.ceil(size * silicon.element_bytes / ALIGNED_BYTES) * ALIGNED_BYTES for size in (dqk, dv))
    dqk, dv = (_head_size(size, kernel) for size in (dqk, dv))
    wide = np.clip((np.maximum(dqk, dv) - NARROW) / (WIDE - NARROW), 0.0, 1.0)
    filled = 1 - wide * (1 - column[f"attention_{phase}_wide"])
    rate = _attention_rate(silicon, column, column[f"attention_{phase}_fraction"] * column.kernel(kernel, phase))
    products = PRODUCTS[phase] * (dqk + dv) / filled
    softmax = column[f"attention_{phase}_softmax"]
    busy = spread * blend(products, softmax, column["attention_softmax_blend"]) / rate
    moved = b * own * (q * h + s * (h if kv_heads is None else np.asarray(kv_heads)))
    passes = ATTENTION_PASSES[phase] * (1 + np.where(aligned, 0.0, PADDING_PASSES))
    moving = moved * passes / (silicon.memory_bytes_per_second * column["traffic_fraction"])
    return np.asarray(column["overhead_us"] * 1e-6 + blend(busy, moving, column["blend"]))


def _head_size(size: Array, kernel: str) -> Array:
    """The head size that a fused kernel computes."""
    if kernel == "cudnn":
        return np.asarray(np.ceil(size / CUDNN_STEP) * CUDNN_STEP)
    place = np.searchsorted(HEAD_SIZES, size)
    known = np.array([*HEAD_SIZES, np.inf])[place]
    return np.asarray(np.where(place < len(HEAD_SIZES), known, np.ceil(size / HEAD_STEP) * HEAD_STEP))


def _unfused_seconds(
    phase: Phase, heads: Array, q: Array, s: Array, dqk: Array, dv: Array, silicon: Silicon,
    constants: dict[str, KernelConstants] | None,
) -> Array:  # fmt: skip
    """Scores and weighted values, and in backward the two gradients of each."""
    # Batched products of rows that cannot be loaded in vectors do without matrix units: heads of 108 and 150 against
    # 112 and 144 in BLOOM's preparation (BigScience, 2021) are 10 to 15 times as slow, an A100's vectors 16.
    without = np.minimum(silicon.vector_fraction / silicon.achievable_fraction, 1.0)

    def product(m: Array, n: Array, k: Array, layout: Layout) -> Array:
        # Rows of the operands and of the result are as long as these.
        aligned = is_aligned(m if layout == "NT" else k, silicon) & is_aligned(n, silicon)
        relative = np.where(aligned, 1.0, without)
        return matmul_seconds(m, n, k, layout, silicon, heads, relative=relative, constants=constants)

    if phase == "forward":
        return product(q, s, dqk, "TN") + product(q, dv, s, "NN")
    return product(q, s, dv, "TN") + product(s, dv, q, "NT") + product(q, dqk, s, "NN") + product(s, dqk, q, "NT")


def _attention_rate(silicon: Silicon, column: Columns, share: Array) -> Array:
    """FLOP/s of attention at a share of the best product's, slower with less power and at lower clocks."""
    share = sustained_share(silicon, column) * share
    return np.asarray(silicon.matmul_flops_per_second * np.minimum(share, 1.0))
