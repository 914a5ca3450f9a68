"""What is kept of a run's steps is bounded, all of it in a short run, and says the same gathered as looked at whole."""

import random
import statistics
from dataclasses import asdict
from typing import Any

import pytest

from executor.observe.events import Action, StepTrace
from executor.observe.kept_steps import LEAST_STEPS, MOST_BYTES, MOST_STEPS, KeptSteps
from executor.observe.time_parts import middle_step
from planner.plans import Plan
from profiles.ranks.launcher import launch
from tests.growth import PLANS, grow
from tests.growth_entries import grown_bytes
from tests.outcome_entries import made_traces

MIB = 2**20


def steps_of(number: int, num_actions: int = 3) -> list[StepTrace]:
    draw = random.Random(number)
    return [
        StepTrace(
            start_seconds=10.0 * step,
            stop_seconds=10.0 * step + draw.random(),
            actions=tuple(
                Action(name="F", microbatch=index, start_seconds=draw.random(), stop_seconds=draw.random())
                for index in range(num_actions)
            ),
            ready_seconds=draw.choice((None, draw.random())),
        )
        for step in range(number)
    ]


def kept(steps: list[StepTrace]) -> KeptSteps:
    result = KeptSteps()
    for step in steps:
        result.add(step)
    return result


def test_all_of_a_short_run_is_kept_as_it_was() -> None:
    steps = steps_of(MOST_STEPS)
    own = kept(steps)
    assert own.traces(0, len(steps)) == steps
    assert list(own.seconds) == [step.seconds for step in steps]


@pytest.mark.parametrize("number", [MOST_STEPS + 1, 1000, 5000])
def test_of_a_long_run_so_many_steps_evenly_spread(number: int) -> None:
    steps = steps_of(number)
    own = kept(steps)
    assert MOST_STEPS / 2 <= len(own) <= MOST_STEPS
    assert own.traces(0, len(own)) == steps[:: own.stride]
    assert len(own.seconds) == number
    index = middle_step(own.seconds, own.stride)
    middle = statistics.median(own.seconds)
    near = own.traces(index, index + 1)[0].seconds
    assert abs(near - middle) == min(abs(step.seconds - middle) for step in steps[:: own.stride])


def test_steps_of_many_actions_are_kept_in_as_many_bytes() -> None:
    num_actions = MOST_BYTES // 20 // 10
    own = kept(steps_of(25, num_actions))
    assert LEAST_STEPS / 2 <= len(own) <= 10
    assert own.traces(0, 1)[0] == steps_of(25, num_actions)[0]


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize(
    "plan",
    [
        Plan(pipeline_parallel=2, schedule="1f1b", stage_bounds=(0, 2), num_microbatches=3),
        Plan(data_parallel=2, num_microbatches=3),
    ],
    ids=["pp2", "dp2"],
)
def test_gathered_it_says_the_same_as_looked_at_whole(plan: Plan) -> None:
    number = 20
    found: dict[str, Any] = launch("tests.outcome_entries:gather", {"plan": asdict(plan), "steps": number}, 2, "cpu")
    ranks = [made_traces(plan, rank, number) for rank in range(2)]
    slowest = [max(one.seconds, other.seconds) for one, other in zip(*ranks, strict=True)]
    assert found["step_seconds"] == slowest
    busy = [[sum(a.seconds for a in step.named("F", "B")) for step in rank] for rank in ranks]
    busiest = [max(ranks, key=lambda rank: busy[ranks.index(rank)][step])[step] for step in range(number)]
    optimizer = statistics.median(step.named("optimizer")[0].seconds for step in busiest)
    assert found["seconds"]["optimizer"] == pytest.approx(optimizer)
    compute = statistics.median(max(one, other) for one, other in zip(*busy, strict=True))
    assert found["seconds"]["compute"] == pytest.approx(compute)
    # Losses: rank r has the step's number plus r, where it computes any.
    mean = 1.0 if plan.pipeline_parallel > 1 else 0.5
    assert found["losses"] == [step + mean for step in range(number)]
    middle = min(range(number), key=lambda step: abs(slowest[step] - statistics.median(slowest)))
    drawn = ranks if plan.pipeline_parallel > 1 else ranks[:1]
    assert len(found["spans"]) == sum(len(rank[middle].actions) for rank in drawn)
    last = max(action.stop_seconds for rank in drawn for action in rank[middle].actions)
    assert max(span["stop_seconds"] for span in found["spans"]) == pytest.approx(
        last - min(rank[middle].start_seconds for rank in drawn)
    )


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_loss_that_is_no_number_ends_every_rank() -> None:
    from profiles.errors import ToleranceError

    payload = {"plan": asdict(Plan(data_parallel=2)), "steps": 5, "bad": 3}
    with pytest.raises(ToleranceError, match="the loss of step 4 is nan"):
        launch("tests.outcome_entries:gather", payload, 2, "cpu")


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_memory_does_not_grow_with_steps() -> None:
    for rank in grow(PLANS["dp2"], 300):
        assert grown_bytes(rank["memory"]) < 5 * MIB
