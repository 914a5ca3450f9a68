"""Clusters: how machines join their devices, shipped ones and a user's own, of one kind or of several. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from profiles.artifacts import STRICT, read_toml, validate
from profiles.catalog import CATALOG
from profiles.errors import InputError, UnknownNameError
from profiles.inputs import foreign, limits
from profiles.inputs.ranges import Bandwidth, Devices, Latency, Whole
from profiles.machines.devices import Device, catalogue_names, find_device, load_device

FOLDER = CATALOG / "clusters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """How nodes of `device` are joined; bandwidth is uni-directional per device, `sources` says whence each number is.

    `fast_domain` devices reach each other by their own links, which may be more than a node's. `nics_per_node` network
    cards give each device `network_gb_per_second`; `rail_optimised` clusters join the cards of one place in every node
    by their own switch. `network_latency_us` is a hop as profiles/laws/collectives counts it.
    """

    __pydantic_config__ = STRICT

    name: str
    title: str
    device: str
    devices_per_node: Devices
    fast_domain: Devices
    nics_per_node: Whole
    network_gb_per_second: Bandwidth
    rail_optimised: bool
    network_latency_us: Latency
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEntry:
    """So many devices of a kind: `of` names a shipped cluster, or a device as it is usually sold."""

    __pydantic_config__ = STRICT

    of: str
    num_devices: Devices


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedCluster:
    """Pools of devices of several kinds, joined by a network.

    `network_gb_per_second` is what a device of one pool reaches one of another with, uni-directional; None is the
    slowest of the pools' own networks.
    """

    __pydantic_config__ = STRICT

    name: str
    title: str
    pools: tuple[PoolEntry, ...]
    network_gb_per_second: Bandwidth | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def num_devices(self) -> int:
        """Devices of all pools."""
        return sum(pool.num_devices for pool in self.pools)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool with what it is made of; without a cluster, nodes are as the device is usually sold."""

    device: Device
    cluster: Cluster | None
    num_devices: int


def cluster_names() -> list[str]:
    """The names of all shipped clusters."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_cluster(text: str) -> Cluster | MixedCluster:
    """What `text` means: a shipped cluster, a file of the user's (.toml), or pools such as dgx-h100:32,dgx-a100:32.

    Raises: UnknownNameError; ArtifactError for a file that is neither; InputError for pools that are none.
    """
    if text.endswith(".toml"):
        content = foreign.read_toml(Path(text), "give a file like those in profiles/catalog/clusters")
        foreign.refuse_line_breaks(content, text)
        return validate(content, MixedCluster, text) if "pools" in content else validate(content, Cluster, text)
    if ":" not in text:
        return load_cluster(text)
    entries = []
    for word in text.split(","):
        name, _, count = word.strip().partition(":")
        if not limits.is_whole(count) or not int(count):
            raise InputError(f"--cluster {word.strip()}: give pools as name:devices, such as dgx-h100:32,dgx-a100:32")
        entries.append(PoolEntry(of=name, num_devices=int(count)))
    return MixedCluster(name=text, title=" + ".join(f"{e.num_devices} x {e.of}" for e in entries), pools=tuple(entries))


def load_pools(cluster: MixedCluster) -> tuple[Pool, ...]:
    """The pools of a cluster.

    Raises: InputError where there are fewer than two, or one has no devices; UnknownNameError with the nearest name.
    """
    if len(cluster.pools) < 2:
        raise InputError(f"cluster {cluster.name}: a cluster of pools needs at least two pools")
    return tuple(_pool(cluster, entry) for entry in cluster.pools)


def _pool(cluster: MixedCluster, entry: PoolEntry) -> Pool:
    if entry.num_devices < 1:
        raise InputError(f"cluster {cluster.name}: pool {entry.of} has num_devices={entry.num_devices}, at least 1")
    if entry.of in cluster_names():
        own = load_cluster(entry.of)
        return Pool(device=load_device(own.device), cluster=own, num_devices=entry.num_devices)
    try:
        device = find_device(entry.of)
    except UnknownNameError:
        raise UnknownNameError("cluster or device", entry.of, [*cluster_names(), *catalogue_names()]) from None
    return Pool(device=device, cluster=None, num_devices=entry.num_devices)


def load_cluster(name: str) -> Cluster:
    """The shipped cluster called `name`.

    Raises: UnknownNameError with the nearest name.
    """
    if name not in cluster_names():
        raise UnknownNameError("cluster", name, cluster_names())
    return read_toml(FOLDER / f"{name}.toml", Cluster)
