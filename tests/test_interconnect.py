"""The law of collectives and the curves of measured machines, held against published tables; shipped clusters."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.errors import UnknownNameError
from profiles.laws.collective_tables import along, measured_tables, with_knots
from profiles.laws.collectives import (
    BETWEEN_PROCESSORS,
    Fabric,
    collective_seconds,
    ethernet_seconds,
    link_constants,
    measured_seconds,
)
from profiles.laws.fit_collectives import MACHINES, errors, fit, medians, read_points
from profiles.machines.clusters import FOLDER, cluster_names, load_cluster
from profiles.machines.devices import load_device

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_receive")
# Measured: machines' medians have a median of 11.8 % from 256 KiB on, each machine's is below what stands here.
MEDIAN_ERROR = 0.14
MACHINE_ERROR = {"GB200 20x NVL72": 0.42, "GH200 Alps 4-GPU node": 0.32, "A100-SXM4-40GB Sirius 4-GPU node": 0.32}
ANY_MACHINE_ERROR = 0.25
# Without the family that is judged: measured 24 % on two nodes of InfiniBand, 8 % on many.
HELD_OUT_ERROR = {"A100 InfiniBand": 0.30, "B200 InfiniBand": 0.12}


def fabric(fast=450e9, pair=None, network=50e9, in_switch=True, **latencies):
    return Fabric(
        fast_bytes_per_second=np.array(fast),
        p2p_bytes_per_second=np.array(fast if pair is None else pair),
        network_bytes_per_second=np.array(network),
        in_switch=np.array(in_switch),
        **latencies,
    )


@pytest.mark.parametrize(
    "hardware", sorted({key[0] for key, curve in measured_tables().items() if len(curve.seconds) > 8})
)
def test_eight_knots_reproduce_the_points_between_them(hardware):
    found = []
    for key, curve in measured_tables().items():
        if key[0] != hardware:
            continue
        kept = set(with_knots(curve).num_bytes)
        rest = [i for i, num_bytes in enumerate(curve.num_bytes) if num_bytes not in kept]
        predicted = measured_seconds(*key, np.array(curve.num_bytes)[rest])
        found += list(np.abs(predicted / np.array(curve.seconds)[rest] - 1))
    assert np.median(found) < 0.05


def test_knots_keep_the_ends_and_short_tables_whole():
    curves = list(measured_tables().values())
    for curve in curves:
        knots = with_knots(curve)
        assert len(knots.num_bytes) == min(8, len(curve.num_bytes))
        assert (knots.num_bytes[0], knots.num_bytes[-1]) == (curve.num_bytes[0], curve.num_bytes[-1])
    longest = max(curves, key=lambda curve: len(curve.num_bytes))
    last = longest.num_bytes[-1]
    assert along(longest, last * 4) == pytest.approx(4 * longest.seconds[-1])
    assert along(longest, 0.0) == pytest.approx(longest.seconds[0])


def test_a_machine_or_group_that_was_not_measured_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="H100-SXM 8-GPU node"):
        measured_seconds("H100-SXM 8-GPU nod", "all_reduce", 8, 1, 1e6)
    with pytest.raises(UnknownNameError, match="of 8 GPUs in 1 nodes"):
        measured_seconds("H100-SXM 8-GPU node", "all_reduce", 16, 2, 1e6)


def test_the_law_reproduces_the_tables_within_its_stated_error():
    points = read_points()
    found = medians(points, errors(points))
    assert set(found) == set(MACHINES)
    assert np.median(list(found.values())) < MEDIAN_ERROR
    for name, error in found.items():
        assert error < MACHINE_ERROR.get(name, ANY_MACHINE_ERROR), name


@pytest.mark.parametrize("family", HELD_OUT_ERROR)
def test_the_law_holds_for_machines_that_it_was_not_fitted_to(family):
    points = read_points()
    own = points.family == family
    found = errors(points, fit(points, ~own))
    assert np.median(np.abs(np.expm1(found[own & (points.num_bytes >= 2**18)]))) < HELD_OUT_ERROR[family]


def test_an_all_reduce_of_a_megabyte_on_an_nvlinked_node_is_mostly_latency():
    # vTrain measured 45, 53 and 92 us for two, four and eight A100, launch included.
    seconds = collective_seconds("all_reduce", 2.0**20, [2, 4, 8], [2, 4, 8], fabric(300e9, in_switch=False))
    assert np.all(np.diff(seconds) >= 0)
    np.testing.assert_allclose(seconds, [45e-6, 53e-6, 92e-6], rtol=0.5)


def test_an_all_to_all_reaches_what_expert_dispatch_does():
    # DeepEP: 153 of 200 GB/s within a node of H800, 43 to 58 of 50 GB/s to other nodes (some tokens stay inside).
    h800 = fabric(200e9, network=50e9)
    inside = 2.0**30 * 7 / 8 / collective_seconds("all_to_all", 2.0**30, 8, 8, h800)
    assert inside == pytest.approx(153e9, rel=0.2)
    nodes = np.array([2.0, 4.0, 8.0])
    outside = 2.0**30 * (1 - 1 / nodes) / collective_seconds("all_to_all", 2.0**30, 8 * nodes, 8, h800)
    np.testing.assert_allclose(outside, [43e9, 57e9, 50e9], rtol=0.45)


groups = st.tuples(st.sampled_from([2, 4, 8, 16]), st.integers(1, 64))
rates = st.floats(1e9, 1e12)
FAST = 450e9
sizes = st.floats(0.0, 1e11)
kinds = st.sampled_from(COLLECTIVES)
PROPERTY = settings(max_examples=150)


@PROPERTY
@given(kinds, sizes, groups, rates, rates, rates, st.booleans(), st.floats(1.0, 8.0))
def test_more_bandwidth_is_never_slower(collective, num_bytes, group, fast, pair, network, in_switch, more):
    inside, nodes = group
    base = fabric(fast, pair, network, in_switch)
    before = collective_seconds(collective, num_bytes, inside * nodes, inside, base)
    for name in ("fast_bytes_per_second", "p2p_bytes_per_second", "network_bytes_per_second"):
        better = replace(base, **{name: getattr(base, name) * more})
        assert collective_seconds(collective, num_bytes, inside * nodes, inside, better) <= before * (1 + 1e-9)
    assert collective_seconds(collective, num_bytes, inside * nodes, inside, base, sharing=more) >= before * (1 - 1e-9)


@PROPERTY
@given(kinds, sizes, groups, st.booleans(), st.floats(1.0, 100.0))
def test_more_bytes_are_never_faster(collective, num_bytes, group, in_switch, more):
    inside, nodes = group
    links = fabric(in_switch=in_switch)
    before = collective_seconds(collective, num_bytes, inside * nodes, inside, links)
    assert collective_seconds(collective, num_bytes * more, inside * nodes, inside, links) >= before * (1 - 1e-9)


@PROPERTY
@given(st.sampled_from(COLLECTIVES[:4]), sizes, groups, st.booleans(), rates, st.booleans())
def test_more_nodes_are_not_faster(collective, num_bytes, group, in_switch, network, ethernet):
    inside, nodes = group
    # A device's card has a quarter of its fast links' rate or less in every machine of the catalogue. Were it as fast,
    # another node could be faster, in truth and here: more cards share the work.
    links = fabric(
        network=min(network, FAST / 2),
        in_switch=in_switch,
        network_latency_seconds=np.array(ethernet_seconds()) if ethernet else None,
    )
    before = collective_seconds(collective, num_bytes, inside * nodes, inside, links)
    assert collective_seconds(collective, num_bytes, inside * (nodes + 1), inside, links) >= before * (1 - 1e-9)


@PROPERTY
@given(sizes, st.integers(2, 72), st.booleans(), rates)
def test_an_all_reduce_takes_no_less_than_half_of_itself(num_bytes, size, in_switch, fast):
    links = fabric(fast, in_switch=in_switch)
    whole, half = (collective_seconds(kind, num_bytes, size, size, links) for kind in ("all_reduce", "reduce_scatter"))
    assert whole >= half * 0.97


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_a_group_of_one_costs_nothing_and_jobs_broadcast(collective):
    links = fabric(np.full((3, 1), 450e9), network=np.full((3, 1), 50e9), in_switch=np.zeros((3, 1), dtype=bool))
    seconds = collective_seconds(collective, 2.0**20, [1, 8, 64, 64], [1, 8, 8, 1], links)
    assert seconds.shape == (3, 4)
    assert np.all(seconds[:, 0] == 0)
    assert np.all(seconds[:, 1:] > 0)
    assert np.all(np.isfinite(seconds))


def test_constants_are_read_strictly_and_lie_within_their_bounds():
    law = link_constants()
    for name in ("ring_fraction", "switch_fraction", "network_fraction", "network_message_fraction"):
        assert 0.5 < getattr(law, name) <= 1.0


@pytest.mark.parametrize("name", cluster_names())
def test_a_shipped_cluster_names_a_shipped_device_and_its_sources(name):
    cluster = load_cluster(name)
    assert cluster.name == name
    assert load_device(cluster.device).name == cluster.device
    assert cluster.fast_domain >= cluster.devices_per_node > 0
    assert cluster.network_gb_per_second > 0
    assert {"node", "network", "rails", "latency"} <= set(cluster.sources)


def test_an_unknown_cluster_is_refused_with_the_nearest_name():
    assert len(list(FOLDER.glob("*.toml"))) >= 3
    with pytest.raises(UnknownNameError, match="did you mean 'dgx-h100'"):
        load_cluster("dgx-h10")


@settings(max_examples=100)
@given(
    st.sampled_from(COLLECTIVES),
    st.sampled_from([2**16, 2**22, 2**28]),
    st.sampled_from([(8, 1), (4, 2), (2, 4), (4, 1), (2, 1), (2, 2)]),
)
def test_a_pcie_node_is_slower_where_groups_go_through_both_processors(collective, num_bytes, group):
    size, stride = group
    one, two = fabric(fast=31e9, in_switch=False), fabric(fast=31e9, in_switch=False, root_ranks=np.array(4.0))
    before = collective_seconds(collective, num_bytes, size, size, one, stride=stride)
    after = collective_seconds(collective, num_bytes, size, size, two, stride=stride)
    if (size - 1) * stride < 4:
        assert after == before
    else:
        assert after > before
        # Never slower than if all that a node sends went over one link.
        assert after < before * 8 / BETWEEN_PROCESSORS


def test_rings_that_interleave_share_what_joins_the_processors():
    node = fabric(fast=31e9, in_switch=False, root_ranks=np.array(4.0))
    pairs = [float(collective_seconds("all_gather", 2**30, 2, 2, node, stride=stride)) for stride in (1, 4)]
    assert pairs[1] / pairs[0] == pytest.approx(4, rel=0.05)


def test_a_ring_of_eight_pcie_cards_passes_what_was_measured():
    """GTX 1080 Ti and TITAN X Pascal, PCIe 3: 8.7 and 8.8 GB/s (baidu-research/DeepBench, 2017)."""
    node = fabric(fast=15.75e9, in_switch=False, root_ranks=np.array(4.0))
    rate = 2 * (1 - 1 / 8) * 2**30 / float(collective_seconds("all_reduce", 2**30, 8, 8, node))
    assert rate == pytest.approx(8.75e9, rel=0.2)
