"""Which links a plan's axes cross: the machine as a graph of devices, switches of fast links, and the network."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from planner.answers import AxisLinks
from planner.plans import Plan

if TYPE_CHECKING:
    import networkx

    from planner.space.question import Setting

NETWORK = "network"


def machine_graph(at: Setting, ranks: Iterable[int]) -> networkx.Graph:
    """Devices `ranks` with the switches and the network that join them; edges have a capacity in bytes per second.

    Model: every device has its share of the node's network cards, and reaches all others of its fast domain at the
    same rate; the network itself blocks nothing.
    """
    import networkx

    graph: Any = networkx.Graph()
    for rank in ranks:
        graph.add_edge(rank, NETWORK, capacity=at.network_bytes_per_second)
        if at.fast_domain > 1:
            graph.add_edge(rank, ("switch", rank // at.fast_domain), capacity=at.fast_bytes_per_second)
    return graph


def first_group(plan: Plan, axis: str) -> range:
    """The ranks of the axis's group that rank 0 is in: neighbours on inner axes lie between them."""
    if plan.degree(axis) == 1:
        return range(1)
    stride = 1
    for inner in plan.axis_order[: plan.axis_order.index(axis)]:
        stride *= plan.degree(inner)
    return range(0, stride * plan.degree(axis), stride)


def axis_links(plan: Plan, at: Setting) -> list[AxisLinks]:
    """What joins the ranks of every axis that has several, innermost axis first."""
    import networkx

    result = []
    for axis in plan.axis_order:
        if plan.degree(axis) == 1:
            continue
        ranks = first_group(plan, axis)
        graph = machine_graph(at, ranks)
        apart = graph.copy()
        apart.remove_node(NETWORK)
        domains = networkx.number_connected_components(apart)
        slowest = at.fast_bytes_per_second if domains == 1 else _slowest_on_the_way(graph, ranks)
        result.append(AxisLinks(axis=axis, degree=len(ranks), num_domains=domains, bytes_per_second=slowest))
    return result


def _slowest_on_the_way(graph: networkx.Graph, ranks: range) -> float:
    """The least capacity between the first rank and the others, through the network where it must be."""
    import networkx

    first, *others = ranks
    ways = networkx.single_source_shortest_path(graph, first)
    edges = {edge for rank in others for edge in itertools.pairwise(ways[rank])}
    return float(min(graph.edges[edge]["capacity"] for edge in edges))
