"""Timing against a clock that the test moves by hand."""

import pytest
import torch

from profiles.measure.timing import Bench, HostTimer, Peers, summarise

CPU = Peers(device=torch.device("cpu"))


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, *durations):
        """An action that takes each of `durations` in turn, the last for ever."""
        left = list(durations)

        def action():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return action


def bench(clock, **fields):
    return Bench(timer=HostTimer(clock=clock), peers=CPU, **fields)


def test_median_and_interquartile_spread_by_hand():
    timing = summarise([5.0, 1.0, 2.0, 4.0, 3.0])
    assert timing.seconds == 3.0
    assert timing.spread_fraction == pytest.approx((4.0 - 2.0) / 3.0)


def test_one_slow_moment_does_not_move_the_median():
    assert summarise([1.0, 1.0, 50.0, 1.0, 1.0]).seconds == 1.0


def test_the_timer_divides_by_the_calls_and_waits_for_the_device():
    clock = FakeClock()
    # Twice the device is waited for; only the second wait lies between the two readings of the clock.
    timer = HostTimer(clock=clock, synchronise=clock.work(100.0, 1.0))
    assert timer.read(clock.work(2.0), calls=4).seconds == pytest.approx((4 * 2.0 + 1.0) / 4)


def test_warm_up_calls_do_not_count():
    clock = FakeClock()
    timing = bench(clock, repeats=3).time_one(clock.work(9.0, 8.0, 1.0))
    assert timing.seconds == 1.0
    assert timing.spread_fraction == 0.0


def test_short_actions_are_called_often_enough_to_fill_a_sample():
    clock, calls = FakeClock(), []
    tick = clock.work(1e-3)

    def action():
        calls.append(1)
        tick()

    assert bench(clock, repeats=5, sample_seconds=1e-2).time_one(action).seconds == pytest.approx(1e-3)
    assert 2 + 5 * 10 <= len(calls) <= 2 + 5 * 11


def test_max_calls_limits_how_often_a_sample_calls():
    clock, calls = FakeClock(), []
    tick = clock.work(1e-6)

    def action():
        calls.append(1)
        tick()

    bench(clock, repeats=5, max_calls=1).time_one(action)
    assert len(calls) == 2 + 5


def test_actions_are_timed_in_turns():
    clock, order = FakeClock(), []
    tick = clock.work(1.0)

    def named(name):
        def action():
            order.append(name)
            tick()

        return action

    bench(clock, repeats=2).time([named("a"), named("b")])
    assert order == list("abab" + "abab")


def test_noise_is_answered_with_more_samples_up_to_three_times_as_many():
    clock, calls = FakeClock(), []
    tick = clock.work(1.0, 1.0, *([1.0, 3.0] * 20))

    def action():
        calls.append(1)
        tick()

    bench(clock, repeats=4, patience_seconds=60.0).time_one(action)
    assert len(calls) == 2 + 3 * 4


@pytest.mark.parametrize(("share", "rounds"), [(0.0, 3), (0.01, 1)])
def test_noise_of_what_is_a_small_share_of_the_time_is_not_waited_for(share, rounds):
    clock, calls = FakeClock(), []
    tick = clock.work(1e-3, 1e-3, *([1e-3, 3e-3] * 20))

    def action():
        calls.append(1)
        tick()

    setting = {"repeats": 4, "max_calls": 1, "patience_seconds": 60.0, "small_share": share}
    bench(clock, **setting).time([clock.work(1.0), action])
    assert len(calls) == 2 + rounds * 4


def test_samples_in_which_another_process_had_the_core_are_left_out():
    clock, own = FakeClock(), FakeClock()
    durations, index = [1.0, 1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 5.0], iter(range(99))

    def action():
        seconds = durations[min(next(index), len(durations) - 1)]
        clock.now += seconds
        own.now += 1.0  # it is the other process that made it take 5

    timer = HostTimer(clock=clock, own_clock=own)
    setting = {"timer": timer, "peers": CPU, "repeats": 6, "patience_seconds": 0.0}
    assert Bench(**setting, has_own_core=False).time_one(action).seconds == 5.0
    index = iter(range(99))
    durations[6] = 1.0
    assert Bench(**setting, has_own_core=True).time_one(action).seconds == 1.0


def test_alone_the_slowest_rank_is_this_one():
    timings = [summarise([1.0, 2.0, 3.0]), summarise([4.0])]
    assert CPU.slowest(timings) == timings
    assert CPU.largest([1.0, 5.0]) == [1.0, 5.0]
    assert (CPU.rank, CPU.num_ranks) == (0, 1)


def test_timing_nothing_gives_nothing():
    assert bench(FakeClock()).time([]) == []
