"""Shipped clusters: how common machines join their devices, with sources. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from profiles.artifacts import STRICT, read_toml
from profiles.errors import UnknownNameError

FOLDER = Path(__file__).parent / "catalog" / "clusters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """How nodes of `device` are joined; bandwidth is uni-directional per device, `sources` says whence each number is.

    `fast_domain` devices reach each other by their own links, which may be more than a node's. `nics_per_node` network
    cards give each device `network_gb_per_second`; `rail_optimised` clusters join the cards of one place in every node
    by their own switch. `network_latency_us` is a hop as profiles/interconnect counts it.
    """

    __pydantic_config__ = STRICT

    name: str
    title: str
    device: str
    devices_per_node: int
    fast_domain: int
    nics_per_node: int
    network_gb_per_second: float
    rail_optimised: bool
    network_latency_us: float
    sources: dict[str, str]


def cluster_names() -> list[str]:
    """The names of all shipped clusters."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_cluster(name: str) -> Cluster:
    """The shipped cluster called `name`.

    Raises: UnknownNameError with the nearest name.
    """
    if name not in cluster_names():
        raise UnknownNameError("cluster", name, cluster_names())
    return read_toml(FOLDER / f"{name}.toml", Cluster)
