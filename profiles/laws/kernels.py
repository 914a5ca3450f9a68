"""Seconds of a GPU's matrix products at any shape, by a law of few constants fitted to published tables.

Torch-free, in columns. The constants of each generation lie in catalog/kernels.toml; `python -m
profiles.laws.fit_kernels` fits them again. By construction more work is never faster, a higher peak or bandwidth never
slower, and nothing exceeds the peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.artifacts import STRICT, read_toml
from profiles.catalog import CATALOG
from profiles.laws.power import CLOCK_SHARE, LOW_SHARE, powered_share

Array = NDArray[np.float64]
Layout = Literal["TN", "NN", "NT"]
PATH = CATALOG / "kernels.toml"
# Rows and columns of the tiles that a product may be cut into; the fastest is taken, as the libraries do.
TILES = ((256.0, 128.0), (128.0, 256.0), (128.0, 128.0), (128.0, 64.0), (64.0, 128.0), (64.0, 64.0))
LARGEST = 1 / TILES[0][0] + 1 / TILES[0][1]
# Inner sizes are padded to a slice of so many bytes; a product of less than a wave is split along its own to SPLIT.
SLICE_BYTES, SPLIT = 128.0, 1024.0
# Constants that stand for a time are stated in inner size at this width: narrower operands pass faster.
REFERENCE_BYTES = 2.0
# Bytes moved per element of a result: written in 16 bits, or added to what stands in fp32.
RESULT_BYTES, ACCUMULATED_BYTES = 2.0, 8.0
# Without a table of its own a generation is taken for its nearest relative, an unknown one for STRANGER.
RELATIVES = {
    "maxwell": "volta", "pascal": "volta", "turing": "volta", "ada": "ampere", "cdna2": "ampere", "cdna4": "hopper",
}  # fmt: skip
STRANGER = "ampere"
# Of rows that start at no multiple of 16 bytes: GPT-2, a third of it the head, takes 25 % longer. A. Karpathy, nanoGPT.
ALIGNED_BYTES, MISALIGNED_SLOWDOWN = 16.0, 2.2
# FLOPs outside of the matrix units over theirs in 16 bits, where nothing says: those of an A100.
VECTOR_FRACTION = 1 / 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConstants:
    """One generation's constants.

    Products: `rate_fraction` is the share of the best measured product's rate that large ones reach as TN,
    `nn_relative` and `nt_relative` the other layouts' rates against it. `depth` is the inner size (of 16 bits) that
    starting a tile costs, `reuse` what a tile's edge costs (in rows), `wave_share` how much of the last wave's idle
    multiprocessors shows, `traffic_fraction` the share of memory bandwidth that operands move at, `blend` the power by
    which computing and moving add up (1 one after the other, large together), `overhead_us` starting a kernel. Grouped
    products run at `grouped_fraction` of plain ones and start each group in `grouped_overhead_us`.
    Attention: `attention_*_fraction` is the share of the best product's rate, `attention_*_softmax` what the softmax of
    one query and key costs (in FLOPs of products), `attention_softmax_blend` the power by which both add up,
    `attention_*_wide` the speed of heads of 192. `attention_blend` is
    the power by which the mean and the longest block add up, `attention_ramp` the keys that starting a block costs,
    `attention_block` its queries. `kernels` are the speeds of attention kernels against the one that was fitted,
    forward and backward.
    Power holds down the clock of long products of a table: those of less than `burst_us` run up to `burst` times as
    fast there, not in training. `sustained_fraction` of what a table of short runs alone shows is sustained at the
    board's power. `board_share` of its peak, and `board_low_share` in 8 bits, is the best product of the board that was
    fitted, which has `board_watts_per_tflops` of its 16-bit peak.
    """

    __pydantic_config__ = STRICT

    rate_fraction: float
    nn_relative: float
    nt_relative: float
    depth: float
    reuse: float
    wave_share: float
    traffic_fraction: float
    blend: float
    overhead_us: float
    grouped_fraction: float
    grouped_overhead_us: float
    burst: float
    burst_us: float
    attention_forward_fraction: float
    attention_backward_fraction: float
    attention_forward_wide: float
    attention_backward_wide: float
    attention_blend: float
    attention_ramp: float
    attention_forward_softmax: float
    attention_backward_softmax: float
    attention_softmax_blend: float
    attention_block: float
    kernels: dict[str, tuple[float, float]]
    board_watts_per_tflops: float
    board_share: float
    board_low_share: float
    sustained_fraction: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Silicon:
    """Devices as kernels meet them, in the precision of the kernel. Shapes: one entry per job, or broadcastable.

    `matmul_flops_per_second` is the data sheet's dense peak, `achievable_fraction` the best measured share of it.
    `watts_per_tflops` is the board's power over its 16-bit peak (0: that of the board its generation was fitted on),
    `clock_fraction` the clock that it is locked at over the highest, `vector_fraction` the peak outside of the matrix
    units over theirs. `is_sustained` where it computes for so long that its power counts, as in training.
    """

    matmul_flops_per_second: Array
    achievable_fraction: Array
    memory_bytes_per_second: Array
    num_multiprocessors: Array
    element_bytes: Array
    generation: NDArray[np.str_]
    watts_per_tflops: Array = field(default_factory=lambda: np.zeros(1))
    clock_fraction: Array = field(default_factory=lambda: np.ones(1))
    is_sustained: bool = False
    vector_fraction: Array = field(default_factory=lambda: np.full(1, VECTOR_FRACTION))


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    __pydantic_config__ = STRICT

    generations: dict[str, KernelConstants]


NUMBERS = tuple(one.name for one in fields(KernelConstants) if one.type == "float")


@lru_cache(maxsize=1)
def load_constants() -> dict[str, KernelConstants]:
    """The constants of every generation that was fitted."""
    return dict(read_toml(PATH, _File).generations)


class Columns:
    """The constants of each job's generation, by name."""

    def __init__(self, silicon: Silicon, constants: dict[str, KernelConstants] | None) -> None:
        table = load_constants() if constants is None else constants
        names, self._inverse = np.unique(silicon.generation, return_inverse=True)
        known = (str(name) if name in table else RELATIVES.get(str(name), STRANGER) for name in names)
        self._chosen = [table[name] if name in table else next(iter(table.values())) for name in known]

    def __getitem__(self, name: str) -> Array:
        return np.array([getattr(one, name) for one in self._chosen])[self._inverse]

    def kernel(self, name: str, phase: str) -> Array:
        """Speed of an attention kernel against the one that was fitted."""
        place = 0 if phase == "forward" else 1
        return np.array([one.kernels[name][place] for one in self._chosen])[self._inverse]

    def older_units(self) -> Array:
        """Rate of the instructions of older generations against its own: that of FlashAttention 2, at most 1."""
        return np.array([min(one.kernels.get("flash2", (1.0, 1.0))[0], 1.0) for one in self._chosen])[self._inverse]


def matmul_seconds(
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    layout: Layout,
    silicon: Silicon,
    batch: ArrayLike = 1.0,
    result_bytes: ArrayLike | None = None,
    aligned: ArrayLike = True,
    relative: ArrayLike = 1.0,
    constants: dict[str, KernelConstants] | None = None,
) -> Array:
    """Seconds of `batch` products of (m, k) by (k, n). 0 where a size is 0.

    Model: overhead + (tiles in waves, each k + depth long) joined with (operands through memory), see KernelConstants.
    `relative` is a rate against that of the best kernels. `result_bytes` states what an element of the result moves,
    where that is not 16 bits; `aligned` whether all rows start where vectors can be loaded, see is_aligned.
    Shapes: all broadcast. Layouts, as BLAS calls them: TN forward, NN gradient of the input, NT of the weight.
    Ignores: structured data.
    """
    column = Columns(silicon, constants)
    m, n, k, batch = (np.asarray(size, dtype=np.float64) for size in (m, n, k, batch))
    if result_bytes is None:
        result_bytes = np.maximum(RESULT_BYTES, silicon.element_bytes)
    # They take the kernels of older devices, which newer ones run as they run FlashAttention 2.
    share = np.where(aligned, 1.0, column.older_units() / MISALIGNED_SLOWDOWN) * relative
    busy = _product(m, n, k, layout, silicon, batch, np.asarray(result_bytes), column, share)
    seconds = column["overhead_us"] * 1e-6 + busy
    return np.asarray(np.where((m > 0) & (n > 0) & (k > 0) & (batch > 0), seconds, 0.0))


def is_aligned(size: ArrayLike, silicon: Silicon) -> NDArray[np.bool_]:
    """Whether rows of `size` elements start at multiples of 16 bytes."""
    return np.asarray(np.mod(size, ALIGNED_BYTES / silicon.element_bytes) == 0)


def grouped_matmul_seconds(
    groups: ArrayLike,
    m_per_group: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    layout: Layout,
    silicon: Silicon,
    result_bytes: ArrayLike | None = None,
    constants: dict[str, KernelConstants] | None = None,
) -> Array:
    """Seconds of `groups` products of (m, k) by (k, n) with matrices of their own; "NT" accumulates in fp32.

    Model: as matmul_seconds, at `grouped_fraction` of the rate and `grouped_overhead_us` more per group; one group is a
    plain product.
    Shapes: all broadcast. Of a weight's gradient (NT) the inner size k is the rows of a group.
    """
    column = Columns(silicon, constants)
    m, n, k, groups = (np.asarray(size, dtype=np.float64) for size in (m_per_group, n, k, groups))
    if result_bytes is None:
        result_bytes = ACCUMULATED_BYTES if layout == "NT" else np.maximum(RESULT_BYTES, silicon.element_bytes)
    is_one = groups <= 1
    share = np.where(is_one, 1.0, column["grouped_fraction"])
    busy = _product(m, n, k, layout, silicon, groups, np.asarray(result_bytes), column, share)
    seconds = busy + (column["overhead_us"] + np.where(is_one, 0.0, column["grouped_overhead_us"] * groups)) * 1e-6
    return np.asarray(np.where((m > 0) & (n > 0) & (k > 0) & (groups > 0), seconds, 0.0))


def sustained_share(silicon: Silicon, column: Columns, fraction: ArrayLike = 1.0) -> Array:
    """Share of the peak that a device sustains of what its generation's board does at `fraction` of its best product.

    Model: the device's own best product, what its power allows, or what a locked clock does, whichever is least. A card
    that sustains more at its highest clock than others do has shown that it can.
    """
    low = np.minimum(column["board_low_share"], column["board_share"] * (LOW_SHARE if silicon.is_sustained else 1.0))
    board = np.where(silicon.element_bytes < REFERENCE_BYTES, low, column["board_share"])
    stated = silicon.watts_per_tflops > 0
    power = np.where(stated, silicon.watts_per_tflops / column["board_watts_per_tflops"], 1.0)
    share = np.minimum(silicon.achievable_fraction, powered_share(board * fraction, power))
    return np.asarray(np.minimum(share, np.maximum(share, CLOCK_SHARE) * silicon.clock_fraction))


def product_rate(silicon: Silicon, column: Columns, relative: ArrayLike) -> Array:
    """FLOP/s of large products, at `relative` to those in the layout that was fitted.

    Model: what the device sustains, never more than the peak.
    """
    fraction = column["rate_fraction"] * (column["sustained_fraction"] if silicon.is_sustained else 1.0)
    share = sustained_share(silicon, column, fraction) * np.asarray(relative, dtype=np.float64)
    return np.asarray(silicon.matmul_flops_per_second * np.minimum(share, 1.0))


def blend(first: Array, second: Array, power: Array) -> Array:
    """Two times that partly overlap: their sum at power 1, the longer one at a large power."""
    longer = np.maximum(first, second)
    ratio = np.minimum(first, second) / np.maximum(longer, 1e-300)
    return np.asarray(longer * (1 + ratio**power) ** (1 / power))


def _product(
    m: Array, n: Array, k: Array, layout: Layout, silicon: Silicon, batch: Array, result_bytes: Array, column: Columns,
    relative: ArrayLike = 1.0,
) -> Array:  # fmt: skip
    """Seconds between start and end of the products, without overheads."""
    if layout != "TN":
        relative = np.asarray(relative, dtype=np.float64) * column[f"{layout.lower()}_relative"]
    busy = wave_flops(m, n, k, batch, silicon, column) / product_rate(silicon, column, relative)
    if not silicon.is_sustained:
        length = (busy / (column["burst_us"] * 1e-6)) ** 2
        busy = busy * (1 + length) / (column["burst"] + length)
    moved = batch * (silicon.element_bytes * (m * k + k * n) + result_bytes * m * n)
    moving = moved / (silicon.memory_bytes_per_second * column["traffic_fraction"])
    return blend(busy, moving, column["blend"])


def wave_flops(
    m: Array, n: Array, k: Array, batch: Array, silicon: Silicon, column: Columns | Mapping[str, Array]
) -> Array:
    """FLOPs that the device could have done in the time of its waves, with the tile of least time."""
    reuse, wave_share, multiprocessors = column["reuse"], column["wave_share"], silicon.num_multiprocessors
    depth = column["depth"] * REFERENCE_BYTES / silicon.element_bytes
    padded = np.ceil(k * silicon.element_bytes / SLICE_BYTES) * SLICE_BYTES / silicon.element_bytes
    length, shortest = padded + depth, np.minimum(padded, SPLIT) + depth
    result = np.array(np.inf)
    for rows, columns in TILES:
        waves = batch * np.ceil(m / rows) * np.ceil(n / columns) / multiprocessors
        whole = (waves + wave_share * (np.ceil(waves) - waves)) * length
        part = np.maximum(waves * length, shortest)
        # The edge's cost is relative to the largest tile's, which the fitted rate contains.
        edge = 1 + reuse * (1 / rows + 1 / columns - LARGEST)
        result = np.minimum(result, np.where(waves >= 1, whole, part) * (2 * rows * columns * edge * multiprocessors))
    return result
