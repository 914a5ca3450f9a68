"""Seconds of a collective on anybody's cluster, from data-sheet bandwidths and a few constants. Torch-free, in columns.

Two levels: the law for any machine (`collective_seconds`), and the curves of machines that published tables
(`measured_seconds`, from profiles/laws/collective_tables). `python -m profiles.laws.fit_collectives` fits the law to
the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.artifacts import STRICT, read_toml
from profiles.catalog import CATALOG
from profiles.laws.collective_tables import MICROSECOND
from profiles.laws.collective_tables import measured_seconds as measured_seconds
from profiles.machines.profile import Collective as Collective

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
CONSTANTS = CATALOG / "interconnect.toml"
SLOWEST_BYTES_PER_SECOND = 1.0
NEVER = np.inf
# Devices up to which every switch of a fast domain is reached alike.
SWITCH_RANKS = 8
# From one processor of a PCIe node to the other a ring passes this share of a device's link, and all rings together no
# more than one such link (assumed). Source: rings of eight cards reach 0.55 of PCIe 3's 15.75 GB/s, of two 0.77 (GTX
# 1080 Ti and TITAN X Pascal, baidu-research/DeepBench, 2017).
BETWEEN_PROCESSORS = 0.55
# The links over which a pipeline of chunks fills in `fill_us`: those of A100.
FILL_BYTES_PER_SECOND = 300e9
# The power by which the host's pace and the kernel's own time blend: nearly the larger of the two.
PACE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """Links of jobs; bandwidths are uni-directional per device, off the data sheet. Shapes: one entry per job, or less.

    `p2p_bytes_per_second` is what one pair of devices can use of `fast_bytes_per_second` (a mesh: one link of several);
    `in_switch` says whether the switch can reduce (NVLS). `fast_latency_seconds` is what no collective falls below, its
    launch included; `network_latency_seconds` one hop between domains. None: the law's own, that of
    InfiniBand; `ethernet_seconds` is for slower networks. Of a domain that PCIe joins, `root_ranks` devices are below
    one processor; None, or as many as one likes, where devices have links of their own.
    """

    fast_bytes_per_second: Array
    p2p_bytes_per_second: Array
    network_bytes_per_second: Array
    in_switch: Flags
    fast_latency_seconds: Array | None = None
    network_latency_seconds: Array | None = None
    root_ranks: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConstants:
    """What the law takes for every machine.

    Fractions are shares of the data sheet's bandwidth that long messages reach: `ring`, `tree` and `switch` in the fast
    domain (`pair_loss`: how much less of it two ranks use), `message` for one sender and receiver; `network` for rings
    and trees, `network_message` and `network_all_to_all` between domains. `*_decay` is what each doubling of the
    domains takes off the network's rate, or of the ranks beyond eight off the switch's.
    Latencies: `call_us` is what no collective falls below, the host's launch included; `fast_us` the first two
    ranks of a domain, `hop_us` each further ring step in it, `switch_us` a reduction in the switch; `network_us` a
    hop between domains over InfiniBand as trees see it, `ethernet_us` the same over EFA, TCPXO or Slingshot. A ring
    pays `ring_share` of a hop per domain, an all-to-all `peer_share` per distant peer, a single message
    `message_share`.
    Ramp: a message cut in chunks fills its pipeline in twice the geometric mean of its transfer and `fill_us` (less
    over faster links than FILL_BYTES_PER_SECOND), or between domains `network_fill` times its latency; this stops
    growing with transfers longer than `*ramp_us`.
    """

    __pydantic_config__ = STRICT

    ring_fraction: float
    pair_loss: float
    tree_fraction: float
    switch_fraction: float
    switch_decay: float
    message_fraction: float
    network_fraction: float
    network_message_fraction: float
    network_all_to_all_fraction: float
    network_decay: float
    all_to_all_decay: float
    fast_us: float
    hop_us: float
    switch_us: float
    network_us: float
    ethernet_us: float
    ring_share: float
    peer_share: float
    message_share: float
    call_us: float
    fill_us: float
    ramp_us: float
    network_fill: float
    network_ramp_us: float
    source: str


@dataclass(frozen=True, slots=True)
class _Group:
    """The groups of one call, every number broadcast: ranks, those in one domain, domains, and the links they get.

    `beyond`: seconds of passing a byte to every rank below the other processor of a PCIe node.
    """

    size: Array
    inside: Array
    domains: Array
    fast: Array
    pair: Array
    card: Array
    in_switch: Flags
    call_seconds: Array
    fast_seconds: Array
    hop_seconds: Array
    network_seconds: Array
    beyond: Array


@lru_cache(maxsize=1)
def link_constants() -> LinkConstants:
    """The shipped constants of the law."""
    return read_toml(CONSTANTS, LinkConstants)


def infiniband_seconds() -> float:
    """Seconds of a hop over InfiniBand, which the law assumes unless told."""
    return link_constants().network_us * MICROSECOND


def ethernet_seconds() -> float:
    """Seconds of a hop over EFA, TCPXO or Slingshot, for `Fabric.network_latency_seconds`."""
    return link_constants().ethernet_us * MICROSECOND


def collective_seconds(
    collective: Collective,
    num_bytes: ArrayLike,
    size: ArrayLike,
    inside: ArrayLike,
    fabric: Fabric,
    sharing: ArrayLike = 1.0,
    constants: LinkConstants | None = None,
    stride: ArrayLike = 1.0,
) -> Array:
    """Seconds of `collective` over groups of `size` ranks of which `inside` share a fast domain; 0 for groups of one.

    `num_bytes` is the whole tensor: what an all-gather makes, a reduce-scatter reads, one rank sends in an all-to-all,
    a message. `sharing` groups use the same network cards at once; of a group ranks are `stride` apart, and the
    groups between do the same at the same time.
    Model: the fastest of ring, tree and reduction in the switch, each latency + transfer + ramp, or what starting it
    takes. A ring runs at the
    pace of its slowest link and uses the cards of all its members in a domain; a tree's nodes each pass the tensor up
    and down, of two nodes only across; an all-to-all sends to distant peers through its own card while near ones are
    served by the fast links.
    Ignores: other traffic, oversubscribed switches, in-network reduction (SHARP). Shapes: all broadcast.
    """
    law = constants or link_constants()
    ranks, near, apart = (np.asarray(number, dtype=np.float64) for number in (size, inside, stride))
    group = _group(ranks, near, apart, fabric, sharing, law)
    amount = np.asarray(num_bytes, dtype=np.float64)
    if collective == "send_receive":
        seconds = _message_seconds(amount, group, law)
    elif collective == "all_to_all":
        seconds = _all_to_all_seconds(amount, group, law)
    else:
        seconds = _ring_seconds(amount, 2.0 if collective == "all_reduce" else 1.0, group, law)
        if collective == "all_reduce":
            seconds = np.minimum(seconds, _tree_seconds(amount, group, law))
            seconds = np.minimum(seconds, _switch_seconds(amount, group, law))
    paced = (seconds**PACE + group.call_seconds**PACE) ** (1 / PACE)
    return np.asarray(np.where(group.size > 1, paced, 0.0))


def _group(size: Array, inside: Array, stride: Array, fabric: Fabric, sharing: ArrayLike, law: LinkConstants) -> _Group:
    def latency(given: Array | None, default_us: float) -> Array:
        return np.asarray(default_us * MICROSECOND if given is None else given, dtype=np.float64)

    size = np.maximum(size, 1.0)
    inside = np.clip(inside, 1.0, size)
    link = np.maximum(fabric.fast_bytes_per_second, SLOWEST_BYTES_PER_SECOND)
    below = np.asarray(np.inf if fabric.root_ranks is None else fabric.root_ranks, dtype=np.float64)
    crosses = (inside - 1) * stride >= below
    rings = np.minimum(stride, below)
    # A pair, and a ring, goes through both processors, beside those of the groups between.
    fast = np.where(crosses, link * np.minimum(BETWEEN_PROCESSORS, 1 / np.maximum(rings, 1.0)), link)
    card = np.maximum(fabric.network_bytes_per_second / np.asarray(sharing, dtype=np.float64), SLOWEST_BYTES_PER_SECOND)
    return _Group(
        size=size,
        inside=inside,
        domains=np.ceil(size / inside),
        fast=np.asarray(fast),
        pair=np.maximum(np.minimum(fabric.p2p_bytes_per_second, fast), SLOWEST_BYTES_PER_SECOND),
        card=np.asarray(card),
        in_switch=np.asarray(fabric.in_switch, dtype=np.bool_),
        call_seconds=latency(fabric.fast_latency_seconds, law.call_us),
        fast_seconds=np.asarray(law.fast_us * MICROSECOND),
        hop_seconds=np.asarray(law.hop_us * MICROSECOND),
        network_seconds=latency(fabric.network_latency_seconds, law.network_us),
        # Half of the group is beyond the other processor, and all of the half send there.
        beyond=np.where(crosses, inside / 2 * np.maximum(inside / 2 * rings, 1.0) / link, 0.0),
    )


def _fast_rate(group: _Group, law: LinkConstants) -> Array:
    """Bytes per second that a member's fast links pass around a ring; without end where it is alone in its domain."""
    peers = np.maximum(group.inside - 1, 1.0)
    reached = np.minimum(group.fast * (1 - law.pair_loss / peers), group.pair * peers) * law.ring_fraction
    return np.asarray(np.where(group.inside > 1, reached, NEVER))


def _decayed(fraction: float, decay: float, group: _Group) -> Array:
    return np.asarray(fraction / (1 + decay * np.log2(np.maximum(group.domains / 2, 1.0))))


def _cards_rate(group: _Group, law: LinkConstants) -> Array:
    """Bytes per second through all cards of a domain; without end in groups of one domain."""
    rate = group.inside * group.card * _decayed(law.network_fraction, law.network_decay, group)
    return np.asarray(np.where(group.domains > 1, rate, NEVER))


def _timed(latency: Array, transfer: Array, group: _Group, law: LinkConstants) -> Array:
    """Seconds of a pipelined transfer.

    Model: cutting a message in the best number of chunks costs twice the geometric mean of its transfer and of filling
    the pipeline with one chunk, whose bytes pass faster over faster links; a largest chunk bounds that.
    """
    across = group.domains > 1
    near = law.fill_us * MICROSECOND * FILL_BYTES_PER_SECOND / group.fast
    fill = np.where(across, law.network_fill * latency, near)
    longest = np.where(across, law.network_ramp_us, law.ramp_us) * MICROSECOND
    return np.asarray(latency + transfer + 2 * np.sqrt(fill * transfer) / (1 + np.sqrt(transfer / longest)))


def _ring_seconds(amount: Array, turns: float, group: _Group, law: LinkConstants) -> Array:
    """Each rank passes on every other rank's part: once, or twice in an all-reduce."""
    transfer = turns * (1 - 1 / group.size) * amount / np.minimum(_fast_rate(group, law), _cards_rate(group, law))
    near, far = np.maximum(group.size - group.domains - 1, 0.0), np.where(group.domains > 1, group.domains, 0.0)
    steps = near * group.hop_seconds + far * law.ring_share * group.network_seconds
    return _timed(group.fast_seconds + turns * steps, transfer, group, law)


def _tree_latency(group: _Group) -> Array:
    near, far = np.maximum(np.log2(group.inside) - 1, 0.0) * group.hop_seconds, np.log2(group.domains)
    return np.asarray(group.fast_seconds + 2 * near + far * group.network_seconds)


def _tree_seconds(amount: Array, group: _Group, law: LinkConstants) -> Array:
    """All-reduce up a tree of domains and down again: few steps, the fast links passing everything twice."""
    within = 2 * (1 - 1 / group.size) * amount / (_fast_rate(group, law) / law.ring_fraction * law.tree_fraction)
    return _timed(_tree_latency(group), np.maximum(within, _across(amount, group, law)), group, law)


def _across(amount: Array, group: _Group, law: LinkConstants) -> Array:
    """Seconds that a tree's tensor takes through a domain's cards."""
    return np.asarray(np.where(group.domains > 2, 2.0, 1.0) * amount / _cards_rate(group, law))


def _switch_seconds(amount: Array, group: _Group, law: LinkConstants) -> Array:
    """All-reduce where the switch adds: a device sends its tensor and a share of the sum. Without a switch, never."""
    usable = group.in_switch & (group.inside > 1)
    share = law.switch_fraction / (1 + law.switch_decay * np.log2(np.maximum(group.inside / SWITCH_RANKS, 1.0)))
    ways = np.where(group.domains > 2, 2.0, 1.0)
    within = ways * (1 + 1 / group.inside) * amount / (group.fast * share)
    latency = group.fast_seconds + law.switch_us * MICROSECOND + np.log2(group.domains) * group.network_seconds
    seconds = _timed(latency, np.maximum(within, _across(amount, group, law)), group, law)
    return np.asarray(np.where(usable, seconds, NEVER))


def _all_to_all_seconds(amount: Array, group: _Group, law: LinkConstants) -> Array:
    near, far = (group.inside - 1) / group.size, (group.size - group.inside) / group.size
    card = group.card * _decayed(law.network_all_to_all_fraction, law.all_to_all_decay, group)
    transfer = np.maximum(near * amount / _fast_rate(group, law), far * amount / card)
    transfer = np.maximum(transfer, amount / group.size * group.beyond)
    steps = np.maximum(group.inside - 2, 0.0) * group.hop_seconds
    steps = steps + (group.size - group.inside) * law.peer_share * group.network_seconds
    return _timed(group.fast_seconds + steps, transfer, group, law)


def _message_seconds(amount: Array, group: _Group, law: LinkConstants) -> Array:
    near = group.domains < 2
    rate = np.where(near, group.pair * law.message_fraction, group.card * law.network_message_fraction)
    latency = group.fast_seconds + np.where(near, 0.0, law.message_share * group.network_seconds)
    return np.asarray(latency + amount / rate)
