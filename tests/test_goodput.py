"""Goodput, against simulated failures and published intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.goodput import best_interval_seconds, goodput
from profiles.errors import InputError

HOUR = 3600.0


def simulated_goodput(between, checkpoint, restart, interval, segments, seed):
    """Play failures: each try of a segment or of a restart lasts until it is done or the next failure comes."""
    random = np.random.default_rng(seed)
    clock, failures = 0.0, random.exponential(between, 10 * segments).tolist()
    for _ in range(segments):
        while True:
            need = interval + checkpoint
            # Exponential times have no memory, so every try may draw afresh.
            until = failures.pop()
            if until >= need:
                clock += need
                break
            clock += until
            while (until := failures.pop()) < restart:
                clock += until
            clock += restart
    return segments * interval / clock


@pytest.mark.parametrize(
    ("between", "checkpoint", "restart", "interval"),
    [(3 * HOUR, 60.0, 300.0, 1200.0), (1800.0, 120.0, 600.0, 700.0), (20 * HOUR, 30.0, 900.0, 2 * HOUR)],
)
def test_goodput_is_that_of_simulated_failures(between, checkpoint, restart, interval):
    ours = goodput(
        device_failure_seconds=between * 64,
        num_devices=64,
        checkpoint_seconds=checkpoint,
        restart_seconds=restart,
        interval_seconds=interval,
    ).goodput_fraction
    assert ours == pytest.approx(simulated_goodput(between, checkpoint, restart, interval, 30_000, seed=1), rel=0.01)


def test_the_best_interval_wins_in_simulation():
    between, checkpoint, restart = 2 * HOUR, 120.0, 300.0
    best = float(best_interval_seconds(checkpoint, between))
    at_best, shorter, longer = (
        simulated_goodput(between, checkpoint, restart, best * scale, 30_000, seed=2) for scale in (1.0, 0.4, 2.5)
    )
    assert at_best > shorter
    assert at_best > longer


@given(st.floats(1, 3600), st.floats(60, 1e7), st.floats(0.5, 1.5))
def test_no_other_interval_is_better(checkpoint, between, scale):
    def share(interval):
        found = goodput(
            device_failure_seconds=between,
            num_devices=1,
            checkpoint_seconds=checkpoint,
            restart_seconds=100.0,
            interval_seconds=interval,
        )
        return float(found.goodput_fraction)

    best = float(best_interval_seconds(checkpoint, between))
    assert share(best) >= share(best * scale) * (1 - 1e-9)


@given(st.floats(1, 300), st.floats(1e5, 1e8))
def test_short_checkpoints_are_young_and_daly(checkpoint, between):
    best = float(best_interval_seconds(checkpoint, between))
    # Young, 1974; Daly, 2006, equation 37.
    young, half = math.sqrt(2 * checkpoint * between), checkpoint / (2 * between)
    assert best == pytest.approx(young * (1 + math.sqrt(half) / 3 + half / 9) - checkpoint, rel=1e-3)
    assert best == pytest.approx(young, rel=0.05)


@given(st.integers(1, 10_000), st.integers(1, 100))
def test_more_devices_are_never_better(count, more):
    shares = goodput(
        device_failure_seconds=5e7,
        num_devices=np.array([count, count + more]),
        checkpoint_seconds=60.0,
        restart_seconds=300.0,
    ).goodput_fraction
    assert 0 <= shares[1] <= shares[0] <= 1


def test_senseless_times_are_refused():
    with pytest.raises(InputError, match="positive time between failures"):
        goodput(device_failure_seconds=0, num_devices=1, checkpoint_seconds=1, restart_seconds=1)
    with pytest.raises(InputError, match="positive interval"):
        goodput(device_failure_seconds=1, num_devices=1, checkpoint_seconds=1, restart_seconds=1, interval_seconds=-1.0)
