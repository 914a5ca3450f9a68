"""Where the time of a step went, from traces written by hand, and the loss check."""

import math
from dataclasses import replace

import pytest

from executor.mesh import coordinates
from executor.observe.events import Action, StepTrace
from executor.observe.time_parts import median_parts, spans, step_parts
from executor.observe.tracing import EXCHANGE_PARTS
from executor.run.reference import Reference, check_losses
from planner.plans import Plan


def action(name: str, microbatch: int, start: float, stop: float) -> Action:
    return Action(name=name, microbatch=microbatch, start_seconds=start, stop_seconds=stop)


def trace(stop: float, *actions: Action, ready: float | None = None) -> StepTrace:
    return StepTrace(start_seconds=100.0, stop_seconds=stop, actions=actions, ready_seconds=ready)


def parts_of(
    plan: Plan, *stages: StepTrace, exchange: float | None = 0.0, on_cuda: bool = False
) -> dict[str, float | None]:
    """The parts of one step of one pipeline."""
    beside = dict(enumerate(stages))
    seen = None if exchange is None else dict.fromkeys(EXCHANGE_PARTS.values(), exchange)
    ranks = [step_parts(plan, trace, place, beside) for place, trace in beside.items()]
    return median_parts(plan, [ranks], [seen] * len(ranks), on_cuda)


def test_pipeline_waits_are_told_apart() -> None:
    # Stage 1 starts a second after stage 0 is done with its micro-batch: one second of transfer each way.
    first = trace(
        112.0,
        action("F", 0, 100, 102),
        action("B", 0, 107, 110),
        action("optimizer", -1, 110.5, 111.5),
    )
    second = trace(108.0, action("F", 0, 103, 104), action("B", 0, 104, 106), action("optimizer", -1, 106, 107))
    plan = Plan(pipeline_parallel=2, schedule="gpipe", stage_bounds=(0, 1))
    parts = parts_of(plan, first, second)
    # Stage 0 is busiest: 2 + 3 of compute; from 102 to 107 it waits for 106, then a second of transfer and 0.5 more.
    assert parts["compute"] == pytest.approx(5)
    assert parts["bubble"] == pytest.approx(4)
    assert parts["pipeline_comm"] == pytest.approx(1.5)
    assert parts["optimizer"] == pytest.approx(1)
    assert parts["host"] == pytest.approx(0.5)
    assert sum(value for value in parts.values() if value is not None) == pytest.approx(12)
    drawn = spans({0: first, 1: second})
    assert [(span.stage, span.action, span.start_seconds) for span in drawn][:2] == [(0, "F", 0.0), (0, "B", 7.0)]


def test_exposed_gradient_exchange_and_codec() -> None:
    step = trace(
        110.0,
        action("F", 0, 100, 102),
        action("B", 0, 102, 109),
        action("encode", -1, 105, 106),
        action("all_reduce", -1, 106, 108),
        action("decode", -1, 108, 108.5),
        action("optimizer", -1, 109, 110),
        ready=106.0,
    )
    parts = parts_of(Plan(data_parallel=2, codec="bf16"), step)
    assert parts["codec"] == pytest.approx(1.5)
    assert parts["data_comm"] == pytest.approx(2.5)
    assert parts["compute"] == pytest.approx(5)
    # PowerSGD's work is inside its exchange and cannot be told apart.
    assert parts_of(Plan(data_parallel=2, codec="powersgd-1"), step)["codec"] is None


def test_unobserved_parts_are_null() -> None:
    step = trace(103.0, action("F", 0, 100, 101), action("B", 0, 101, 102), action("optimizer", -1, 102, 103))
    parts = parts_of(Plan(tensor_parallel=2, recompute="full"), step, exchange=None, on_cuda=True)
    assert parts["recompute"] is None
    assert parts["tensor_comm"] is None


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (("tensor", "data", "pipeline"), [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1)]),
        (("pipeline", "tensor", "data"), [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1), (0, 1, 0)]),
    ],
)
def test_coordinates_vary_fastest_along_the_innermost_axis(
    order: tuple[str, ...], expected: list[tuple[int, int, int]]
) -> None:
    plan = Plan(data_parallel=2, tensor_parallel=2, pipeline_parallel=2, axis_order=order)
    places = [coordinates(plan, rank) for rank in range(5)]
    assert [(place.tensor, place.data, place.pipeline) for place in places] == expected


def test_loss_check() -> None:
    exact = Reference(losses=(5.0, 4.0, 3.0), norms=(1.0, 0.9, 0.8), micro_batch_size=1)
    split = Plan(tensor_parallel=2)
    assert check_losses(split, (5.0, 4.0001, 3.0), exact.norms, exact).status == "passed"
    failed = check_losses(split, (5.0, 4.01, 3.0), exact.norms, exact)
    assert failed.status == "failed"
    assert failed.largest_difference_fraction == pytest.approx(0.0025)
    assert check_losses(Plan(precision="bf16"), (5.0, 4.01, 3.0), exact.norms, exact).status == "passed"
    coded = Plan(data_parallel=2, codec="bf16")
    assert check_losses(coded, (5.0, 9.0, 3.0), exact.norms, exact).status == "exempt"
    assert check_losses(Plan(), exact.losses, exact.norms, Reference()).status == "skipped"


def test_a_check_of_too_few_steps_is_none() -> None:
    exact = Reference(losses=(5.0, 4.0, 3.0), norms=(1.0, 0.9, 0.8), micro_batch_size=1)
    for losses, norms in (((), ()), (exact.losses, ()), (exact.losses[:2], exact.norms)):
        with pytest.raises(ValueError, match="zip"):
            check_losses(Plan(), losses, norms, exact)


def test_losses_of_the_same_sums_are_held_tighter() -> None:
    exact = Reference(losses=(5.0, 4.0, 3.0), norms=(1.0, 0.9, 0.8), micro_batch_size=1)
    near = (5.0001, 4.0, 3.0)
    assert check_losses(Plan(data_parallel=2), near, exact.norms, exact).status == "failed"
    other = Plan(data_parallel=2, micro_batch_size=2)
    assert check_losses(other, near, exact.norms, exact).status == "passed"


def test_gradients_that_losses_hide_fail_the_check() -> None:
    # AdamW takes the same steps with gradients twice as large.
    exact = Reference(losses=(5.0, 4.0, 3.0), norms=(1.0, 0.9, 0.8), micro_batch_size=1)
    failed = check_losses(Plan(), exact.losses, (2.0, 1.8, 1.6), exact)
    assert failed.status == "failed"
    assert "gradient norms of the first 3 steps" in failed.reason
    assert check_losses(Plan(), exact.losses, (1.0, math.nan, 0.8), exact).status == "failed"
    assert check_losses(Plan(), exact.losses, exact.norms, replace(exact, is_silent=True)).reason.endswith(
        "compared with dropout off"
    )
