"""The lists of steps, against torch's own schedule objects and against what every schedule must do."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from executor.axes.pipeline import torch_schedule
from planner.plans import Plan, stages_of
from planner.schedules.registry import SCHEDULES, held_at_peak, in_flight, orders, rank_steps, schedule, stage_ranks
from planner.schedules.steps import Shape
from profiles.errors import PlanError, UnknownNameError
from tests.pipeline_builders import chunk_counts, is_possible, shapes
from tests.torch_schedules import torch_steps


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_steps_are_those_of_torch(name):
    checked = 0
    for ranks, chunks in itertools.product((1, 2, 3, 4, 5, 8), chunk_counts(name)):
        for count in (*range(1, 14), 16, 20, 24, 31, 32):
            shape = Shape(name, ranks, chunks, count)
            # torch's 1F1B refuses fewer micro-batches than stages.
            if not is_possible(shape) or (name == "1f1b" and count < ranks):
                continue
            assert [rank_steps(shape, rank) for rank in range(ranks)] == torch_steps(shape), shape
            checked += 1
    assert checked > 40


def test_every_schedule_that_is_planned_is_carried_out_by_torch():
    assert all(callable(torch_schedule(rules)) for rules in SCHEDULES.values())


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_traits_are_what_the_lists_of_steps_do(name):
    rules = SCHEDULES[name]
    shape = Shape(name, 3, rules.stages.least, 12)
    steps = torch_steps(shape)
    assert rules.splits_backward == any(step.action == "W" for rank in steps for step in rank)
    assert rules.stages.is_v == any(step.stage == shape.num_stages - 1 for step in steps[0])
    assert rules.forwards_first == ("F" not in "".join(step.action for step in steps[0]).lstrip("F"))


@given(shapes())
def test_every_micro_batch_passes_every_stage_once_forward_then_once_backward(shape):
    ranks = stage_ranks(shape)
    passed = collections.Counter()
    for rank in range(shape.num_ranks):
        done = set()
        for step in rank_steps(shape, rank):
            assert ranks[step.stage] == rank
            key = (step.stage, step.microbatch)
            before = {"F": "", "B": "F", "I": "F", "W": "FI"}[step.action]
            assert all((action, *key) in done for action in before)
            assert (step.action, *key) not in done
            done.add((step.action, *key))
            passed[key] += {"F": 100, "B": 11, "I": 10, "W": 1}[step.action]
    assert passed == dict.fromkeys(itertools.product(range(shape.num_stages), range(shape.num_microbatches)), 111)


@settings(max_examples=60)
@given(shapes(max_ranks=5, max_microbatches=60))
def test_in_flight_is_the_most_that_the_whole_list_holds(shape):
    for rank, held in enumerate(in_flight(shape)):
        change = {"F": 1, "B": -1, "I": 0, "W": -1}
        assert held == max(np.cumsum([change[step.action] for step in rank_steps(shape, rank)]))
        assert len(held_at_peak(shape)[rank]) == shape.virtual_stages


@given(
    st.sampled_from([*(("interleaved-1f1b", chunks) for chunks in (2, 3, 4)), ("dualpipev", 2)]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([1, 2, 4, 8, 16, 32]),
)
def test_chunks_under_way_are_the_most_of_the_whole_list(chosen, pipeline, count):
    name, chunks = chosen
    assume(name != "dualpipev" or count >= pipeline * chunks)
    shape = Shape(name, pipeline, chunks, count)
    for rank in range(pipeline):
        steps = [step.stage for step in rank_steps(shape, rank) if step.action in ("B", "W")]
        last = {stage: index for index, stage in enumerate(steps)}
        first = {stage: index for index, stage in reversed(list(enumerate(steps)))}
        most = max(sum(first[stage] <= index <= last[stage] for stage in last) for index in range(len(steps)))
        assert most == SCHEDULES[name].open_chunks(*(np.array(float(size)) for size in (pipeline, chunks, count)))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # Huang et al. 2019; Narayanan et al. 2021 (1F1B: at most as many as stages follow).
        (Shape("gpipe", 4, 1, 16), (16, 16, 16, 16)),
        (Shape("1f1b", 4, 1, 16), (4, 3, 2, 1)),
        # Narayanan et al. 2021: p v + p - 1 chunks on the first rank, in halves of a 1F1B stage.
        (Shape("interleaved-1f1b", 4, 2, 16), (11, 9, 7, 5)),
        # Qi et al. 2024: ZB-V holds p micro-batches of two half stages on every rank; ZB-H1 p of whole ones.
        (Shape("zbv", 4, 2, 16), (8, 8, 8, 8)),
        (Shape("interleaved-zb", 4, 1, 16), (4, 4, 4, 4)),
        # DeepSeek-AI, DualPipe: 2 p + 1 chunks at most.
        (Shape("dualpipev", 4, 2, 16), (9, 9, 9, 9)),
    ],
    ids=lambda value: getattr(value, "schedule", ""),
)
def test_in_flight_is_as_published(shape, expected):
    assert in_flight(shape) == expected


@given(shapes())
def test_stages_lie_where_the_plan_says(shape):
    plan = Plan(
        pipeline_parallel=shape.num_ranks,
        virtual_stages=shape.virtual_stages,
        schedule=shape.schedule,
        stage_bounds=tuple(range(shape.num_stages)),
    )
    for rank in range(shape.num_ranks):
        assert tuple(np.flatnonzero(stage_ranks(shape) == rank)) == stages_of(plan, rank)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape("1f1b", 4, 2, 8), "1f1b has one stage per rank, not 2"),
        (Shape("zbv", 4, 1, 8), "zbv has two stages per rank, not 1"),
        (Shape("dualpipev", 4, 2, 7), "num_microbatches=7: dualpipev needs at least 8"),
        (Shape("interleaved-1f1b", 4, 2, 9), "num_microbatches=9: interleaved-1f1b goes in 2 rounds of equal length"),
        (Shape("gpipe", 4, 1, 0), "gpipe: ranks, stages and micro-batches must be at least 1"),
    ],
)
def test_impossible_shapes_are_refused_by_name(shape, reason):
    with pytest.raises(PlanError, match=reason):
        orders(shape)


def test_unknown_schedule_is_named():
    with pytest.raises(UnknownNameError, match="unknown schedule '1f1x': did you mean '1f1b'"):
        schedule("1f1x")
