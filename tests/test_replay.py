"""The replay of a schedule, against the longest path of a graph, textbook bubbles and the laws of a pipeline."""

import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedules import registry as schedules
from planner.schedules.registry import rank_steps, stage_ranks
from planner.schedules.replay import (
    CHUNK,
    PipelineSeconds,
    busy_seconds,
    replay,
    replay_plans,
    replay_spans,
    step_graph,
)
from planner.schedules.steps import Order, Shape
from profiles.errors import PlanError
from tests.pipeline_builders import even_seconds, random_seconds, shapes


def longest_path(shape, seconds):
    """The step time of one plan as networkx sees it: an edge carries the time of the step it leads to."""
    graph, ranks = nx.DiGraph(), stage_ranks(shape)

    def duration(step):
        forward, backward, weight = (
            float(values[step.stage, 0]) for values in (seconds.forward, seconds.backward, seconds.weight)
        )
        return {"F": forward, "B": backward, "I": backward - weight, "W": weight}[step.action]

    def message(first, second):
        between = float(seconds.message[min(first, second), 0])
        return 0.0 if ranks[first] == ranks[second] else between

    made = {}
    for rank in range(shape.num_ranks):
        steps = rank_steps(shape, rank)
        graph.add_edge("start", steps[0], weight=duration(steps[0]))
        for before, after in itertools.pairwise(steps):
            graph.add_edge(before, after, weight=duration(after))
        made |= {("F" if s.action == "F" else "B", s.stage, s.microbatch): s for s in steps if s.action != "W"}
    for (kind, stage, microbatch), step in made.items():
        source = made.get((kind, stage - 1 if kind == "F" else stage + 1, microbatch))
        if source:
            graph.add_edge(source, step, weight=message(source.stage, stage) + duration(step))
    return nx.dag_longest_path_length(graph)


@settings(max_examples=60)
@given(shapes(max_ranks=5, max_microbatches=12), st.floats(0, 0.9), st.floats(0, 1), st.integers(0, 99))
def test_replay_is_the_longest_path(shape, spread, message, seed):
    seconds = random_seconds(shape, 3, spread, message, seed)
    ours = replay_plans(shape, seconds)
    for plan in range(3):
        one = seconds.take(slice(plan, plan + 1))
        assert ours.step_seconds[plan] == pytest.approx(longest_path(shape, one))
        assert replay_spans(shape, one)[0] == pytest.approx(ours.step_seconds[plan])


@settings(max_examples=60)
@given(shapes(max_ranks=5, max_microbatches=12), st.floats(0, 0.9), st.floats(0, 1), st.integers(0, 99))
def test_a_rank_does_one_thing_at_a_time_and_all_it_has_to(shape, spread, message, seed):
    seconds = random_seconds(shape, 1, spread, message, seed)
    end, spans = replay_spans(shape, seconds)
    busy, ranks = busy_seconds(shape, seconds)[:, 0], stage_ranks(shape)
    for rank in range(shape.num_ranks):
        mine = sorted((s for s in spans if ranks[s.stage] == rank), key=lambda s: s.start_seconds)
        assert all(a.stop_seconds <= b.start_seconds + 1e-9 for a, b in itertools.pairwise(mine))
        assert sum(s.stop_seconds - s.start_seconds for s in mine) == pytest.approx(busy[rank])
        assert busy[rank] <= end + 1e-9


@settings(max_examples=40)
@given(shapes(), st.sampled_from(["forward", "backward", "message"]), st.integers(0, 99))
def test_nothing_is_faster_for_a_slower_part(shape, name, seed):
    seconds = random_seconds(shape, 4, 0.5, 0.3, seed)
    columns = {n: getattr(seconds, n) for n in ("forward", "backward", "weight", "message")}
    slower = PipelineSeconds(**{**columns, name: columns[name] * 1.3})
    before, after = replay_plans(shape, seconds), replay_plans(shape, slower)
    assert np.all(after.step_seconds >= before.step_seconds - 1e-9)


def test_plans_do_not_depend_on_how_many_are_replayed_together():
    shape = Shape("zbv", 3, 2, 7)
    seconds = random_seconds(shape, 2 * CHUNK + 40, 0.5, 0.3)
    together = replay_plans(shape, seconds)
    for start in (0, CHUNK - 1, CHUNK, 2 * CHUNK + 39):
        alone = replay_plans(shape, seconds.take(slice(start, start + 1)))
        assert alone.step_seconds[0] == together.step_seconds[start]
        np.testing.assert_array_equal(alone.busy_seconds[:, 0], together.busy_seconds[:, start])


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
@pytest.mark.parametrize("rounds", [2, 3, 5])
@pytest.mark.parametrize(
    ("name", "chunks", "bubble"),
    [
        # Huang et al. 2019, Narayanan et al. 2021: (p - 1)(F + B); in chunk times, so divided by the chunks.
        ("gpipe", 1, lambda f, b, w: f + b),
        ("1f1b", 1, lambda f, b, w: f + b),
        ("interleaved-1f1b", 2, lambda f, b, w: f + b),
        ("interleaved-1f1b", 3, lambda f, b, w: f + b),
        # Qi et al. 2023: ZB-H1 (p - 1)(F + I - W).
        ("interleaved-zb", 1, lambda f, b, w: f + b - 2 * w),
        ("interleaved-zb", 2, lambda f, b, w: f + b - 2 * w),
    ],
)
def test_equal_stages_have_the_textbook_bubble(name, chunks, bubble, ranks, rounds):
    shape = Shape(name, ranks, chunks, rounds * ranks)
    for forward, backward, weight in ((1.0, 2.0, 1.0), (1.0, 3.0, 1.0), (2.0, 3.0, 0.5)):
        end = replay_plans(shape, even_seconds(shape, forward, backward, weight)).step_seconds[0]
        expected = chunks * shape.num_microbatches * (forward + backward)
        assert end == pytest.approx(expected + (ranks - 1) * bubble(forward, backward, weight))


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
@pytest.mark.parametrize("count", [20, 33])
def test_zbv_has_no_bubble_where_its_three_parts_take_equally_long(ranks, count):
    shape = Shape("zbv", ranks, 2, count)
    _, spans = replay_spans(shape, even_seconds(shape, 1.0, 2.0, 1.0))
    for rank in range(ranks):
        mine = [s for s in spans if stage_ranks(shape)[s.stage] == rank]
        assert max(s.stop_seconds for s in mine) - min(s.start_seconds for s in mine) == pytest.approx(6 * count)


@pytest.mark.parametrize("ranks", [2, 4, 7])
def test_dualpipev_is_no_slower_than_its_authors_say_of_whole_pairs(ranks):
    shape = Shape("dualpipev", ranks, 2, 20)
    for forward, backward, weight in ((1.0, 2.0, 1.0), (1.0, 3.0, 1.0), (2.0, 3.0, 0.5)):
        end = replay_plans(shape, even_seconds(shape, forward, backward, weight)).step_seconds[0]
        # DeepSeek-AI, DualPipe: (p - 1)(F&B + B - 3 W); torch sends the forward of a pair before its backward runs.
        bubble = (ranks - 1) * (forward + backward + backward - 3 * weight)
        assert 2 * 20 * (forward + backward) < end <= 2 * 20 * (forward + backward) + bubble + 1e-9


def test_the_plain_form_is_the_general_one():
    end, spans = replay("1f1b", [1.0, 2.0], [2.0, 3.0], 0.25, 3)
    # By hand: the slow stage works 15 s, after a forward and a message, before a message and a backward.
    assert end == pytest.approx(1.0 + 0.25 + 15.0 + 0.25 + 2.0)
    assert {s.action for s in spans} == {"F", "B"}


def test_steps_that_wait_for_each_other_are_named(monkeypatch):
    def backwards_first(shape, rank):
        order = schedules.SCHEDULES["gpipe"].order(shape, rank)
        return Order(action=order.action[::-1], stage=order.stage, microbatch=order.microbatch, paired=order.paired)

    monkeypatch.setitem(schedules.SCHEDULES, "odd", schedules.Schedule("odd", backwards_first, lambda shape: 2))
    with pytest.raises(PlanError, match="schedule odd deadlocks: rank 0 at B0 of stage 0"):
        step_graph(Shape("odd", 2, 1, 2))
