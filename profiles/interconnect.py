"""Seconds of a collective on anybody's cluster, from data-sheet bandwidths and a few constants. Torch-free, in columns.

Source of the constants: nccl-tests tables of A100, H100, H200, B200, GH200 and MI300X machines in
catalog/measured/collectives.csv; `tests/test_interconnect.py` holds the law against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_receive"]
MICROSECOND = 1e-6
# Share of the fast links' bandwidth that a long ring reaches (235 of 300 GB/s on A100, 360 of 450 on H100, 698 of 900
# on B200), and how much less one of two ranks does (193 against 227 GB/s).
RING_FRACTION, PAIR_LOSS = 0.79, 0.18
# Reduction in the switch (NVLS): 479 GB/s of bus bandwidth on H100 (450), 846 on B200 (900); from five ranks on.
SWITCH_FRACTION, SWITCH_RANKS = 0.98, 5
MESSAGE_FRACTION = 0.72
# A full mesh (MI300X) reaches 48 of 64 GB/s with one peer, 313 of 448 with seven.
MESH_FRACTION = 0.72
# Share of the network cards' bandwidth: rings 183 of 200 GB/s (HDR), 92 of 100 (Slingshot), 382 of 400 (NDR).
NETWORK_FRACTION, NETWORK_MESSAGE_FRACTION, NETWORK_ALL_TO_ALL_FRACTION = 0.92, 0.87, 0.8
# Lost per doubling of the nodes.
RING_DECAY, ALL_TO_ALL_DECAY = 0.005, 0.12
# Across nodes, trees through the switch pass half of the bytes that a ring does: 720 and 546 against 380 GB/s.
SWITCH_TREE_GAIN = 1.2
# Small messages go by a protocol of low latency and a quarter of the bandwidth, large ones by one of the opposite kind.
LOW_LATENCY_SHARE = 0.25
LATENCY_US = {"low": (14.0, 3.0), "full": (28.0, 6.0)}  # of the first two ranks, of each further one
ALL_REDUCE_HOP_US, RING_HOP_US = 16.0, 3.0  # per doubling of the nodes, per rank beyond the node
MESSAGE_US, NETWORK_MESSAGE_US = 15.0, 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """Links of jobs; bandwidths are uni-directional per device. Shapes: one entry per job, or broadcastable.

    `p2p_bytes_per_second` is what one pair of devices can use of `fast_bytes_per_second`; `in_switch` says whether the
    switch can reduce.
    """

    fast_bytes_per_second: Array
    p2p_bytes_per_second: Array
    network_bytes_per_second: Array
    in_switch: NDArray[np.bool_]


def collective_seconds(
    collective: Collective, num_bytes: ArrayLike, size: ArrayLike, inside: ArrayLike, fabric: Fabric
) -> Array:
    """Seconds of `collective` over groups of `size` ranks of which `inside` share a fast domain; 0 for groups of one.

    `num_bytes` is the whole tensor: what an all-gather makes, a reduce-scatter reads, one rank sends in an all-to-all.
    Model: latency + bytes / bandwidth of the better of two protocols; a ring runs at the pace of its slowest link, and
    between nodes uses the network cards of all its members in a node.
    Ignores: other traffic. Shapes: all broadcast.
    """
    num_bytes, size, inside = (np.asarray(value, dtype=np.float64) for value in (num_bytes, size, inside))
    inside = np.minimum(inside, size)
    nodes = np.maximum(np.ceil(size / np.maximum(inside, 1.0)), 1.0)
    if collective == "send_receive":
        seconds = _message_seconds(num_bytes, inside >= size, fabric)
    elif collective == "all_to_all":
        seconds = _all_to_all_seconds(num_bytes, size, inside, nodes, fabric)
    else:
        seconds = _ring_seconds(collective, num_bytes, size, inside, nodes, fabric)
    return np.asarray(np.where(size > 1, seconds, 0.0))


def _fast_rate(size: Array, fabric: Fabric) -> Array:
    """Bus bandwidth of a ring within the fast domain."""
    others = np.maximum(size - 1, 1.0)
    ring = fabric.fast_bytes_per_second * RING_FRACTION * (1 - PAIR_LOSS / others)
    mesh = fabric.p2p_bytes_per_second * others * MESH_FRACTION
    return np.asarray(np.where(fabric.p2p_bytes_per_second < 0.5 * fabric.fast_bytes_per_second, mesh, ring))


def _ring_seconds(collective: str, num_bytes: Array, size: Array, inside: Array, nodes: Array, fabric: Fabric) -> Array:
    turns = 2.0 if collective == "all_reduce" else 1.0
    volume = turns * (size - 1) / np.maximum(size, 1.0) * num_bytes
    fast = _fast_rate(np.minimum(size, np.maximum(inside, 2.0)), fabric)
    if collective == "all_reduce":
        switched = fabric.fast_bytes_per_second * SWITCH_FRACTION
        fast = np.where(fabric.in_switch & (inside >= SWITCH_RANKS), np.maximum(fast, switched), fast)
    cards = inside * fabric.network_bytes_per_second * NETWORK_FRACTION / (1 + RING_DECAY * np.log2(nodes))
    if collective == "all_reduce":
        cards = cards * np.where(fabric.in_switch & (inside >= SWITCH_RANKS), SWITCH_TREE_GAIN, 1.0)
    rate = np.where(nodes > 1, np.where(inside > 1, np.minimum(fast, cards), cards), fast)
    hops = ALL_REDUCE_HOP_US * np.log2(nodes) if collective == "all_reduce" else RING_HOP_US * (size - inside)
    choices = []
    for protocol, share in (("low", LOW_LATENCY_SHARE), ("full", 1.0)):
        first, each = LATENCY_US[protocol]
        latency = first + each * (np.maximum(inside, 1.0) - 1) * turns / 2 + hops
        choices.append(latency * MICROSECOND + volume / (rate * share))
    return np.asarray(np.minimum(*choices))


def _all_to_all_seconds(num_bytes: Array, size: Array, inside: Array, nodes: Array, fabric: Fabric) -> Array:
    near = num_bytes * np.maximum(inside - 1, 0.0) / np.maximum(size, 1.0)
    far = num_bytes * np.maximum(size - inside, 0.0) / np.maximum(size, 1.0)
    decay = 1 + ALL_TO_ALL_DECAY * np.log2(nodes)
    first, each = LATENCY_US["full"]
    latency = (first + each * (inside - 1) / 2 + RING_HOP_US * (size - inside)) * MICROSECOND
    within = near / _fast_rate(np.maximum(inside, 2.0), fabric)
    return np.asarray(
        latency + np.maximum(within, far / (fabric.network_bytes_per_second * NETWORK_ALL_TO_ALL_FRACTION) * decay)
    )


def _message_seconds(num_bytes: Array, near: NDArray[np.bool_], fabric: Fabric) -> Array:
    fast = MESSAGE_US * MICROSECOND + num_bytes / (fabric.p2p_bytes_per_second * MESSAGE_FRACTION)
    far = NETWORK_MESSAGE_US * MICROSECOND + num_bytes / (fabric.network_bytes_per_second * NETWORK_MESSAGE_FRACTION)
    return np.asarray(np.where(near, fast, far))
