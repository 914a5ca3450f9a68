"""Schedules, their replay and the partition of layers, against textbook formulas and brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.partition import partition
from planner.replay import replay
from planner.schedules import SCHEDULES, schedule
from profiles.errors import PlanError, UnknownNameError

NAMES = sorted(SCHEDULES)
sizes = st.tuples(st.integers(1, 6), st.integers(1, 12))


@pytest.mark.parametrize("name", NAMES)
@given(sizes)
def test_every_micro_batch_passes_once_forward_then_once_backward(name, size):
    num_stages, num_microbatches = size
    for stage in range(num_stages):
        steps = list(schedule(name).steps(stage, num_stages, num_microbatches))
        assert len(steps) == 2 * num_microbatches == len({(s.action, s.microbatch) for s in steps})
        seen = [(s.action, s.microbatch) for s in steps]
        assert all(seen.index(("F", i)) < seen.index(("B", i)) for i in range(num_microbatches))


@pytest.mark.parametrize("name", NAMES)
@given(sizes)
def test_in_flight_is_the_most_that_the_steps_hold(name, size):
    num_stages, num_microbatches = size
    for stage in range(num_stages):
        held = np.cumsum([1 if s.action == "F" else -1 for s in schedule(name).steps(stage, *size)])
        assert max(held) == schedule(name).in_flight(stage, num_stages, num_microbatches)


@pytest.mark.parametrize("name", NAMES)
@given(sizes, st.floats(0.5, 2), st.floats(0.5, 4))
def test_equal_stages_have_the_textbook_bubble(name, size, forward, backward):
    num_stages, num_microbatches = size
    end, spans = replay(name, [forward] * num_stages, [backward] * num_stages, 0.0, num_microbatches)
    # Huang et al. 2019, Narayanan et al. 2021: (m + p - 1)(F + B) for both schedules.
    assert end == pytest.approx((num_microbatches + num_stages - 1) * (forward + backward))
    assert len(spans) == 2 * num_stages * num_microbatches


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0.5, 2), st.floats(0.5, 4)), min_size=1, max_size=5),
    st.integers(1, 10),
    st.floats(0, 0.5),
)
def test_replay_respects_dependencies_and_never_does_two_things_at_once(name, times, count, message):
    forward, backward = [f for f, _ in times], [b for _, b in times]
    end, spans = replay(name, forward, backward, message, count)
    at = {(s.action, s.stage, s.microbatch): s for s in spans}
    last = len(times) - 1
    for (action, stage, microbatch), span in at.items():
        if action == "F" and stage > 0:
            assert span.start_seconds >= at["F", stage - 1, microbatch].stop_seconds + message - 1e-9
        if action == "B" and stage < last:
            assert span.start_seconds >= at["B", stage + 1, microbatch].stop_seconds + message - 1e-9
        if action == "B" and stage == last:
            assert span.start_seconds >= at["F", stage, microbatch].stop_seconds - 1e-9
    for stage in range(len(times)):
        ordered = sorted((s for s in spans if s.stage == stage), key=lambda s: s.start_seconds)
        assert all(a.stop_seconds <= b.start_seconds + 1e-9 for a, b in itertools.pairwise(ordered))
    busiest = max(f + b for f, b in times)
    assert end >= count * busiest - 1e-9


def test_unknown_schedule_is_named():
    with pytest.raises(UnknownNameError, match="unknown schedule '1f1x': did you mean '1f1b'"):
        schedule("1f1x")


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
