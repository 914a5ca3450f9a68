"""Plans timed again by replay: closed form and replay agree, and the laws of schedules are those of their lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.axes.pipeline import bubble_left, held_microbatches
from planner.schedules.laws import WAITING_SHARE
from planner.schedules.registry import orders
from planner.schedules.replay import PipelineSeconds, replay_plans
from planner.schedules.steps import Order, Shape
from planner.space import replay_best as retime
from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.question import setting
from planner.space.to_plans import best_places
from profiles.library import load_sizes
from profiles.machines.devices import load_device
from tests.test_space import make

SHAPES = [
    ("1f1b", 1), ("interleaved-1f1b", 2), ("interleaved-1f1b", 4), ("interleaved-zb", 1), ("interleaved-zb", 4),
    ("zbv", 2), ("dualpipev", 2),
]  # fmt: skip


def _most_held(order: Order) -> float:
    """Activations at the fullest moment, those whose weight gradients wait counted with the gradients they keep."""
    held = np.cumsum(np.array([1, -1, 0, -1])[order.action])
    waiting = np.cumsum(np.array([0, 0, 1, -1])[order.action])
    return float((held + WAITING_SHARE * waiting).max())


@pytest.mark.parametrize(("name", "chunks"), SHAPES)
@pytest.mark.parametrize(("ranks", "count"), [(2, 4), (2, 16), (4, 8), (4, 32), (8, 64)])
def test_activations_held_are_those_of_the_lists_of_steps(name: str, chunks: int, ranks: int, count: int) -> None:
    own = [_most_held(order) / chunks for order in orders(Shape(name, ranks, chunks, count))]
    columns = (np.full(ranks, float(value)) for value in (ranks, chunks, count))
    assert held_microbatches(name, *columns, np.arange(ranks, dtype=float)) == pytest.approx(own)


@given(
    st.sampled_from([("1f1b", 1), ("interleaved-zb", 1), ("interleaved-zb", 4), ("zbv", 2), ("dualpipev", 2)]),
    st.sampled_from([2, 4, 8, 16]),
    st.floats(0.24, 1 / 3),
    st.floats(0.1, 1 / 3),
)
def test_bubbles_left_are_those_of_the_lists_of_steps(
    own: tuple[str, int], ranks: int, forward: float, weight: float
) -> None:
    name, chunks = own
    shape = Shape(name, ranks, chunks, 4 * ranks)
    each = np.ones((shape.num_stages, 1))
    seconds = PipelineSeconds(
        forward=forward * each, backward=(1 - forward) * each, weight=weight * each, message=0 * each
    )
    idle = replay_plans(shape, seconds).step_seconds[0] - shape.num_microbatches * chunks
    left = bubble_left(name, *(np.array([float(value)]) for value in (ranks, forward, weight)))
    assert float(left[0]) == pytest.approx(idle / (ranks - 1), abs=1e-9)


@pytest.mark.parametrize(("name", "chunks"), SHAPES)
def test_many_microbatches_go_on_at_the_pace_of_some(name: str, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for ranks, count in ((2, 32), (4, 128), (8, 160), (8, 131)):
        if "interleaved" in name and count % max(1, count // ranks):
            continue
        shape = Shape(name, ranks, chunks, count)
        forward, backward, message = (
            low + wide * random.random((shape.num_stages, 20)) for low, wide in ((1.0, 0.2), (2.0, 0.3), (0.0, 0.05))
        )
        seconds = PipelineSeconds(forward=forward, backward=backward, weight=0.9 * forward, message=message)
        monkeypatch.setattr(retime, "MOST_PASSES", 0)
        assert retime.makespans(shape, seconds) == pytest.approx(replay_plans(shape, seconds).step_seconds, rel=0.015)


@pytest.mark.parametrize("stack", ["trainwright", "megatron-core"])
def test_replay_agrees_with_the_closed_form(stack: str) -> None:
    at = setting(load_sizes("llama-3.1-70b"), load_device("h100-sxm"), 64, 512, 8192, stack=stack)
    space = explore(at, Options(offload=("none",)))
    places = best_places(space, 200)
    off = np.abs(retime.replay_offsets(space, places) / space.best.step_seconds[:200])
    piped = np.array([space.layouts.pipeline[place.layout] > 1 for place in places])
    assert piped.any()
    assert (off[~piped] == 0).all()
    assert np.quantile(off, 0.95) < 0.03
    # Of sharded weights the first stage gathers the embedding too, in every pass: only the replay knows.
    assert off.max() < 0.07


def test_the_best_are_ranked_by_replay() -> None:
    space = explore(make(), Options(offload=("none",)))
    again = retime.in_order(space)
    assert len(again.best) == len(space.best)
    first = again.best.step_seconds[: retime.MOST_PLANS]
    assert (np.diff(first) >= 0).all()
    places = best_places(again, 20)
    closed = dict(zip(best_places(space, 400), space.best.step_seconds, strict=False))
    expected = [closed[place] for place in places] + retime.replay_offsets(again, places)
    assert first[:20] == pytest.approx(expected)
