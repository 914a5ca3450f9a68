"""Which links axes cross: the answer against a graph of the machine, and the rules by which steps are priced."""

import itertools

import networkx as nx
import numpy as np
import pytest

from planner.cost.axes.groups import experts_inside, members_inside, pipeline_stride, replicas_inside
from planner.plans import AXES, Plan
from planner.space.explore import Place, explore
from planner.space.layouts import Options
from planner.space.question import setting
from planner.space.to_plans import jobs_at, plan_of
from planner.space.topology import axis_links, joined_group
from profiles.library import load_sizes
from profiles.machines.clusters import load_cluster
from profiles.machines.devices import load_device

NETWORK = "network"


def machine_graph(at, ranks):
    """Devices with the switches and the network that join them; edges have a capacity in bytes per second."""
    graph = nx.Graph()
    for rank in ranks:
        graph.add_edge(rank, NETWORK, capacity=at.network_bytes_per_second)
        if at.fast_domain > 1:
            graph.add_edge(rank, ("switch", rank // at.fast_domain), capacity=at.fast_bytes_per_second)
    return graph


def by_graph(at, ranks):
    """How many parts the ranks fall into without the network, and the narrowest edge on the ways from the first."""
    graph = machine_graph(at, ranks)
    apart = graph.copy()
    apart.remove_node(NETWORK)
    domains = nx.number_connected_components(apart)
    ways = nx.single_source_shortest_path(graph if domains > 1 else apart, ranks[0])
    edges = {edge for rank in ranks[1:] for edge in itertools.pairwise(ways[rank])}
    return domains, min(graph.edges[edge]["capacity"] for edge in edges)


@pytest.mark.parametrize(("cluster", "gpus"), [("dgx-h100", 64), ("gb200-nvl72", 144)])
def test_groups_span_the_fast_domains_that_steps_are_priced_for(cluster, gpus):
    own = load_cluster(cluster)
    at = setting(load_sizes("llama-3.1-70b"), load_device(own.device), gpus, 2 * gpus, 4096, cluster=own)
    space = explore(at, Options(offload=("none",), schedules=("1f1b",)))
    places = [Place(layout, 0, 0, 0) for layout in range(0, len(space.layouts), 7)]
    jobs = jobs_at(space, places)
    inside = {
        "tensor": members_inside(jobs, jobs.tensor, np.ones(len(places))),
        "context": members_inside(jobs, jobs.context, jobs.tensor),
        "data": replicas_inside(jobs, jobs.data, jobs.tensor * jobs.context),
        "pipeline": members_inside(jobs, jobs.pipeline, pipeline_stride(jobs)),
    }
    seen = 0
    for row, place in enumerate(places):
        plan = plan_of(space, place)
        for links in axis_links(plan, at):
            ranks = joined_group(plan, links.axis, at)
            assert (links.num_domains, links.bytes_per_second) == by_graph(at, ranks), (plan.id, links)
            stride, domain = ranks.step, at.fast_domain
            # Where strides and domains do not divide each other, groups differ and the rules speak of the worst.
            if domain % stride == 0 and (domain // stride) % len(ranks) * (len(ranks) % (domain // stride)) == 0:
                together = sum(rank < domain for rank in ranks)
                assert float(inside[links.axis][row]) == together, (plan.id, links)
                crosses = links.num_domains > 1
                assert crosses == (together < links.degree)
                assert links.bytes_per_second == (
                    at.network_bytes_per_second if crosses else at.fast_bytes_per_second
                )  # fmt: skip
                seen += 1
    assert seen > 20


def expert_group(plan):
    """The ranks that share experts with rank 0, neighbours on the data axis, of an array of all ranks."""
    sizes = {axis: plan.degree(axis) for axis in plan.axis_order}
    ranks = np.arange(plan.num_devices).reshape([sizes[axis] for axis in reversed(plan.axis_order)])
    along = np.moveaxis(ranks, [*reversed(plan.axis_order)].index("data"), -1)
    return along.reshape(-1, plan.data_parallel)[0, : plan.expert_parallel].tolist()


def test_ranks_that_share_experts_are_drawn_where_their_messages_are_priced():
    own = load_cluster("dgx-h100")
    at = setting(load_sizes("mixtral-8x7b"), load_device(own.device), 64, 128, 4096, cluster=own)
    space = explore(at, Options(offload=("none",), schedules=("1f1b",)))
    places = [Place(layout, 0, 0, 0) for layout in range(len(space.layouts))]
    jobs = jobs_at(space, places)
    inside = experts_inside(jobs, jobs.expert)
    strides = set()
    for row, place in enumerate(places):
        plan = plan_of(space, place)
        found = [links for links in axis_links(plan, at) if links.axis == "expert"]
        assert len(found) == (plan.expert_parallel > 1)
        for links in found:
            ranks = joined_group(plan, "expert", at)
            if plan.data_parallel % plan.expert_parallel == 0:
                assert [*ranks] == expert_group(plan), plan.id
                strides.add(ranks.step)
            assert (links.degree, links.num_domains) == (plan.expert_parallel, by_graph(at, ranks)[0])
            # Where a stride and a domain do not divide each other, the price is of the fewest that are together.
            if at.fast_domain % ranks.step == 0:
                assert float(inside[row]) == sum(rank < at.fast_domain for rank in ranks), plan.id
    assert {1, 2, 8} <= strides


@pytest.mark.parametrize("order", [AXES, ("pipeline", "data", "context", "tensor")])
def test_groups_of_an_axis_share_out_all_ranks(order):
    at = setting(load_sizes("llama-26m"), load_device("h100-sxm"), 48, 48, 64)
    plan = Plan(data_parallel=3, tensor_parallel=2, context_parallel=2, pipeline_parallel=4, axis_order=order)
    for axis in AXES:
        own = joined_group(plan, axis, at)
        assert len(own) == plan.degree(axis)
        assert own[0] == 0
        assert own[-1] < plan.num_devices
    # The first groups of two axes have rank 0 alone in common.
    for one in AXES:
        for other in AXES:
            if one != other:
                assert set(joined_group(plan, one, at)) & set(joined_group(plan, other, at)) == {0}
