"""The closed form of a pipeline beside its exact replay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.pipeline_time import pipeline_seconds
from planner.schedules.registry import SCHEDULES
from planner.schedules.replay import replay_plans
from planner.schedules.steps import Shape
from tests.pipeline_builders import chunk_counts, is_possible, random_seconds, shapes

NAMES = sorted(SCHEDULES)
PLANS = 12


def errors(shape, spread, message, seed=0):
    """Closed form over replay, minus one, of some random plans."""
    seconds = random_seconds(shape, PLANS, spread, message, seed)
    count = np.full(PLANS, shape.num_microbatches)
    closed = pipeline_seconds(shape.schedule, shape.num_ranks, shape.virtual_stages, count, seconds)
    return closed / replay_plans(shape, seconds).step_seconds - 1


def grid(name):
    for ranks in (1, 2, 4, 8, 16):
        for chunks in chunk_counts(name):
            for per_rank in (1, 1.5, 2, 4, 8):
                shape = Shape(name, ranks, chunks, int(ranks * per_rank))
                if is_possible(shape):
                    yield shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("spread", "message", "tolerance"), [(0.0, 0.0, 1e-9), (0.0, 0.2, 0.015), (0.1, 0.1, 0.03), (0.3, 0.1, 0.08)]
)
def test_the_closed_form_is_close_to_the_replay(name, spread, message, tolerance):
    found = np.concatenate([errors(shape, spread, message) for shape in grid(name)])
    assert np.abs(found).max() <= tolerance
    assert np.abs(found).mean() <= tolerance / 5


@settings(max_examples=50)
@given(shapes(max_ranks=6, max_microbatches=40), st.floats(0, 0.9), st.integers(0, 99))
def test_without_messages_it_is_the_length_of_a_real_path(shape, spread, seed):
    found = errors(shape, spread, 0.0, seed)
    assert found.max() <= 1e-9
    seconds = random_seconds(shape, PLANS, spread, 0.0, seed)
    busiest = replay_plans(shape, seconds).busy_seconds.max(axis=0)
    closed = replay_plans(shape, seconds).step_seconds * (1 + found)
    assert np.all(closed >= busiest * (1 - 1e-9))


@pytest.mark.parametrize("name", NAMES)
def test_a_table_of_plans_may_differ_in_micro_batches(name):
    chunks = chunk_counts(name)[-1]
    counts = np.array([8, 16, 24, 64, 16, 8])
    seconds = random_seconds(Shape(name, 4, chunks, 8), len(counts), 0.2, 0.1)
    together = pipeline_seconds(name, 4, chunks, counts, seconds)
    alone = [
        pipeline_seconds(name, 4, chunks, counts[i : i + 1], seconds.take(slice(i, i + 1)))[0]
        for i in range(len(counts))
    ]
    np.testing.assert_allclose(together, alone)


@pytest.mark.parametrize("name", NAMES)
def test_further_micro_batches_cost_what_the_slowest_rank_takes(name):
    chunks = chunk_counts(name)[-1]
    counts = np.array([400, 800])
    seconds = random_seconds(Shape(name, 4, chunks, 8), 1, 0.1, 0.0).take(np.zeros(2, dtype=int))
    first, second = pipeline_seconds(name, 4, chunks, counts, seconds)
    busy = replay_plans(Shape(name, 4, chunks, 400), seconds).busy_seconds.max(axis=0)[0]
    # GPipe's forwards and backwards have their slowest stages each by themselves.
    expected = 400 * (seconds.forward.max(axis=0) + seconds.backward.max(axis=0))[0] if name == "gpipe" else busy
    assert second - first == pytest.approx(expected, rel=0.01)
