"""The partition of layers into stages and their placement under a memory limit, against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedules import placement
from planner.schedules.partition import partition
from planner.schedules.placement import SOLVER_GAP_FRACTION, Layers, objective_seconds, place, rank_bytes
from planner.schedules.steps import Shape
from profiles.errors import PlanError
from tests.pipeline_builders import shapes


@settings(max_examples=200)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9), st.integers(1, 5))
def test_partition_is_as_good_as_brute_force(layers, num_stages):
    if num_stages > len(layers):
        with pytest.raises(PlanError, match="at least as many layers"):
            partition(np.array(layers), num_stages)
        return

    def slowest(bounds):
        return max(sum(layers[a:b]) for a, b in zip(bounds, (*bounds[1:], len(layers)), strict=True))

    ours = partition(np.array(layers), num_stages)
    assert ours[0] == 0
    assert len(ours) == num_stages
    best = min(slowest((0, *cut)) for cut in itertools.combinations(range(1, len(layers)), num_stages - 1))
    assert slowest(ours) == pytest.approx(best, rel=1e-6)


FIELDS = ("seconds", "state_bytes", "kept_bytes", "working_bytes")


def random_layers(draw, count):
    costs = st.floats(0.1, 10)
    return Layers(**{name: np.array(draw(st.lists(costs, min_size=count, max_size=count))) for name in FIELDS})


@st.composite
def problems(draw, names, max_ranks, max_layers):
    shape = draw(shapes(max_ranks=max_ranks, max_microbatches=6).filter(lambda s: s.schedule in names))
    count = draw(st.integers(min(shape.num_stages, max_layers), max_layers))
    layers = random_layers(draw, count)
    total = layers.state_bytes.sum() + layers.kept_bytes.sum() * shape.num_microbatches
    return layers, shape, draw(st.floats(0.1, 1.2)) * total


def by_brute_force(layers, shape, memory_bytes):
    """The objective of the best placement that fits, over all cuts; infinite where none does."""
    cuts = itertools.combinations(range(1, len(layers.seconds)), shape.num_stages - 1)
    fitting = [(0, *cut) for cut in cuts if rank_bytes(layers, shape, (0, *cut)).max() <= memory_bytes]
    return min((objective_seconds(layers, shape, bounds) for bounds in fitting), default=np.inf)


def check_against_brute_force(layers, shape, memory_bytes, gap):
    best = by_brute_force(layers, shape, memory_bytes)
    if not np.isfinite(best):
        with pytest.raises(PlanError, match=r"fits|at least as many layers"):
            place(layers, shape, memory_bytes)
        return
    placed = place(layers, shape, memory_bytes)
    assert len(placed.bounds) == shape.num_stages
    assert placed.bounds[0] == 0
    assert all(a < b for a, b in itertools.pairwise((*placed.bounds, len(layers.seconds))))
    assert rank_bytes(layers, shape, placed.bounds).max() <= memory_bytes * (1 + 1e-6)
    assert placed.is_proven
    assert best * (1 - 1e-9) <= objective_seconds(layers, shape, placed.bounds) <= best * (1 + gap)


@settings(max_examples=80)
@given(problems(("gpipe", "1f1b"), max_ranks=4, max_layers=9))
def test_one_stage_per_rank_is_placed_as_by_brute_force(problem):
    check_against_brute_force(*problem, gap=1e-9)


@settings(max_examples=25)
@given(problems(("interleaved-1f1b", "zbv", "dualpipev"), max_ranks=3, max_layers=8))
def test_several_stages_per_rank_are_placed_as_by_brute_force(problem):
    check_against_brute_force(*problem, gap=2 * SOLVER_GAP_FRACTION)


def test_a_heavy_head_gets_a_stage_of_its_own_and_memory_shifts_layers_to_later_stages():
    seconds = np.array([0.2, *[1.0] * 12, 3.0])
    states, kept = np.full(14, 1.0), np.array([0.0, *[1.0] * 12, 0.5])
    layers = Layers(seconds=seconds, state_bytes=states, kept_bytes=kept, working_bytes=np.zeros(14))
    shape = Shape("1f1b", 4, 1, 8)
    roomy, tight = place(layers, shape, 1e6), place(layers, shape, 18.0)
    # 15.2 s on four ranks: the head takes one further layer, and the rest is shared.
    assert roomy.slowest_rank_seconds == pytest.approx(4.0)
    # The first rank holds four micro-batches in flight: with 18 bytes there is room for the embedding and 3 layers.
    assert tight.bounds[1] <= 4
    assert tight.slowest_rank_seconds >= roomy.slowest_rank_seconds
    with pytest.raises(PlanError, match=r"no placement of 14 layers on 4 ranks of 1 stages fits .* GiB"):
        place(layers, shape, 3.0)


def test_without_a_limit_it_is_the_fast_partition():
    seconds = np.random.default_rng(5).uniform(0.5, 2, 40)
    zeros = np.zeros(40)
    layers = Layers(seconds=seconds, state_bytes=zeros, kept_bytes=zeros, working_bytes=zeros)
    placed = place(layers, Shape("1f1b", 8, 1, 16), 1.0)
    assert placed.slowest_rank_seconds == pytest.approx(np.add.reduceat(seconds, partition(seconds, 8)).max())


def test_a_solver_out_of_time_says_so_and_is_no_worse_than_the_even_partition(monkeypatch):
    monkeypatch.setattr(placement, "SOLVER_SECONDS", 0.05)
    costs = np.random.default_rng(7).uniform(0.5, 2, (4, 60))
    layers = Layers(**dict(zip(FIELDS, costs, strict=True)))
    shape = Shape("interleaved-1f1b", 6, 3, 12)
    placed = place(layers, shape, 1e6)
    assert not placed.is_proven
    even = objective_seconds(layers, shape, partition(layers.seconds, shape.num_stages))
    assert objective_seconds(layers, shape, placed.bounds) <= even * (1 + 1e-9)
