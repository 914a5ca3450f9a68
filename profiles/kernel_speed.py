"""Seconds of a GPU's matrix products and attention at any shape, by a law of few constants fitted to published tables.

Torch-free, in columns. The constants of each generation lie in catalog/kernels.toml; `python -m profiles.fit_kernels`
fits them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.artifacts import STRICT, read_toml

Array = NDArray[np.float64]
Layout = Literal["TN", "NN", "NT"]
PATH = Path(__file__).parent / "catalog" / "kernels.toml"
# A product is cut into tiles that multiprocessors work off in waves; rows and columns of a tile.
TILE_ROWS, TILE_COLUMNS = 128.0, 256.0
# Rows of queries that one block of fused attention works on: with a causal mask the last block works longest.
QUERY_BLOCK = 128.0
# Without a table of its own a generation is taken for its nearest relative.
RELATIVES = {"turing": "volta", "ada": "ampere", "cdna2": "ampere", "cdna3": "ampere", "cdna4": "hopper"}
# Speed of other attention kernels against the one that the tables timed: FlashAttention 2 on Ampere, cuDNN on
# Blackwell; on Hopper "flash2" reaches 0.55 of what "flash3" does. Source: Dao 2023 (arXiv 2307.08691), Shah et al.
# 2024 (arXiv 2407.08608).
KERNEL_SPEED = {"flash1": 0.55, "flash": 1.0, "flash2": 0.85, "flash3": 1.0, "cudnn": 1.0}
HOPPER_FLASH2_SPEED = 0.7
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2.0, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConstants:
    """One generation's constants.

    `*_fraction`: share of the best measured product's rate that large products of a layout, or attention, reach.
    `depth`: inner size that starting a tile costs. `wave_share`: how much of the last wave's idle multiprocessors
    shows. `traffic_fraction`: share of memory bandwidth that operands move at. `overhead_us`: of starting a kernel.
    `grouped_fraction`: rate of grouped products against plain ones. `tail_share`: how much of the longest block of
    attention shows.
    """

    __pydantic_config__ = STRICT

    tn_fraction: float
    nn_fraction: float
    nt_fraction: float
    depth: float
    wave_share: float
    traffic_fraction: float
    overhead_us: float
    grouped_fraction: float
    grouped_overhead_us: float
    attention_forward_fraction: float
    attention_backward_fraction: float
    tail_share: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Silicon:
    """Devices as kernels meet them, in the precision of the kernel. Shapes: one entry per job, or broadcastable.

    `matmul_flops_per_second` is the data sheet's dense peak, `achievable_fraction` the best measured share of it.
    """

    matmul_flops_per_second: Array
    achievable_fraction: Array
    memory_bytes_per_second: Array
    num_multiprocessors: Array
    element_bytes: Array
    generation: NDArray[np.str_]


@lru_cache(maxsize=1)
def load_constants() -> dict[str, KernelConstants]:
    """The constants of every generation that was fitted."""
    return dict(read_toml(PATH, _File).generations)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    __pydantic_config__ = STRICT

    generations: dict[str, KernelConstants]


def _columns(silicon: Silicon, constants: dict[str, KernelConstants] | None) -> dict[str, Array]:
    """The constants of each job's generation."""
    table = load_constants() if constants is None else constants
    names, inverse = np.unique(silicon.generation, return_inverse=True)
    chosen = []
    for name in names:
        known = name if name in table else RELATIVES.get(str(name), "ampere")
        chosen.append(table[known] if known in table else next(iter(table.values())))
    numbers = [field for field in KernelConstants.__dataclass_fields__ if field != "source"]
    return {field: np.array([getattr(one, field) for one in chosen])[inverse] for field in numbers}


def matmul_seconds(
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    layout: Layout,
    silicon: Silicon,
    batch: ArrayLike = 1.0,
    accumulate: bool = False,
    constants: dict[str, KernelConstants] | None = None,
) -> Array:
    """Seconds of `batch` products of (m, k) by (k, n); `accumulate` adds to a matrix of fp32. 0 where a size is 0.

    Model: overhead + tiles in waves, each (k + depth) long + operands through memory.
    Shapes: all broadcast. Layouts, as BLAS calls them: TN forward, NN gradient of the input, NT of the weight.
    """
    m, n, k, batch = (np.asarray(size, dtype=np.float64) for size in (m, n, k, batch))
    c = _columns(silicon, constants)
    rate = silicon.matmul_flops_per_second * silicon.achievable_fraction * c[f"{layout.lower()}_fraction"]
    busy = _wave_flops(m, n, k, batch, silicon, c) / rate
    moved = batch * silicon.element_bytes * (m * k + k * n) + batch * m * n * (8.0 if accumulate else 2.0)
    seconds = c["overhead_us"] * 1e-6 + busy + moved / (silicon.memory_bytes_per_second * c["traffic_fraction"])
    return np.asarray(np.where(m * n * k * batch > 0, seconds, 0.0))


def _wave_flops(m: Array, n: Array, k: Array, batch: Array, silicon: Silicon, c: dict[str, Array]) -> Array:
    """FLOPs that the device could have done in the time of its waves of tiles."""
    tiles = batch * np.maximum(m / TILE_ROWS, 0.5) * np.maximum(n / TILE_COLUMNS, 0.25)
    waves = tiles / silicon.num_multiprocessors
    # Small products are split along k: half a wave is the least.
    quantised = np.maximum(waves + c["wave_share"] * (1 - np.exp(-2 * waves)) * 0.5, 0.1)
    per_wave = 2.0 * TILE_ROWS * TILE_COLUMNS * (k + c["depth"]) * silicon.num_multiprocessors
    return np.asarray(quantised * per_wave)


def grouped_matmul_seconds(
    groups: ArrayLike,
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    layout: Layout,
    silicon: Silicon,
    constants: dict[str, KernelConstants] | None = None,
) -> Array:
    """Seconds of `groups` products of (m, k) by (k, n) with matrices of their own. Shapes: all broadcast."""
    c = _columns(silicon, constants)
    plain = matmul_seconds(m, n, k, layout, silicon, groups, layout == "NT", constants)
    started = c["grouped_overhead_us"] * 1e-6 * np.asarray(groups, dtype=np.float64)
    return np.asarray(np.where(plain > 0, plain / c["grouped_fraction"] + started, 0.0))


def attention_seconds(
    phase: Literal["forward", "backward"],
    kernel: str,
    batch: ArrayLike,
    heads: ArrayLike,
    queries: ArrayLike,
    keys: ArrayLike,
    qk_head_dim: ArrayLike,
    v_head_dim: ArrayLike,
    silicon: Silicon,
    constants: dict[str, KernelConstants] | None = None,
) -> Array:
    """Seconds of causal attention over the products alone; `unfused` are batched products of the whole square.

    Model: half of the products' FLOPs at a share of the best product's rate, after which the longest block goes on.
    Shapes: all broadcast.
    """
    b, h, q, s, dqk, dv = (
        np.asarray(size, dtype=np.float64) for size in (batch, heads, queries, keys, qk_head_dim, v_head_dim)
    )
    if kernel == "unfused":
        return _unfused_seconds(phase, b * h, q, s, dqk, dv, silicon, constants)
    c = _columns(silicon, constants)
    products = FORWARD_PRODUCTS if phase == "forward" else BACKWARD_PRODUCTS
    speed = KERNEL_SPEED[kernel] * np.where(
        (silicon.generation == "hopper") & (kernel in ("flash1", "flash2")), HOPPER_FLASH2_SPEED, 1.0
    )
    # Heads of fewer than 128 fill the units less.
    filled = np.minimum(1.0, (np.maximum(dqk, dv) + 192.0) / 320.0)
    rate = silicon.matmul_flops_per_second * silicon.achievable_fraction * c[f"attention_{phase}_fraction"]
    rate = rate * speed * filled
    per_pair = products * (dqk + dv)
    longest = QUERY_BLOCK * s * per_pair * silicon.num_multiprocessors
    flops = b * h * (q * s - np.minimum(q, s) * q / 2) * per_pair
    busy = (flops + c["tail_share"] * np.minimum(longest, flops * 8)) / rate
    return np.asarray(np.where(b * h * q * s > 0, c["overhead_us"] * 1e-6 + busy, 0.0))


def _unfused_seconds(
    phase: str, heads: Array, q: Array, s: Array, dqk: Array, dv: Array, silicon: Silicon,
    constants: dict[str, KernelConstants] | None,
) -> Array:  # fmt: skip
    """Scores and weighted values, and in backward the two gradients of each."""
    scores = matmul_seconds(q, s, dqk, "TN", silicon, heads, constants=constants)
    values = matmul_seconds(q, dv, s, "NN", silicon, heads, constants=constants)
    if phase == "forward":
        return scores + values
    return 2 * scores + values + matmul_seconds(s, dqk, q, "NT", silicon, heads, constants=constants)
