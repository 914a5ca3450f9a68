"""The space of a machine that was measured: every legal plan, priced by its own kernels and links, by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.answers import Answers
from planner.cost.layers import exposed
from planner.cost.measured.links import MeasuredLinks
from planner.cost.measured.machine import learned_of
from planner.parts import PART_NAMES
from planner.plans import Plan
from planner.prediction import KINDS, Prediction
from planner.simulate.step import simulate
from planner.space.answers import Answer, answer
from planner.space.explore import NO_ROOM, Space, explore
from planner.space.layouts import Options
from planner.space.measured_setting import measured_setting
from planner.space.predictions import predictions
from planner.space.replay_best import in_order, retimed
from planner.space.to_events import step_work
from planner.space.to_plans import best_places, plan_of
from profiles.errors import InputError, NoFeasiblePlanError
from profiles.library import load_model
from profiles.machines.clusters import find_cluster
from profiles.machines.profile import ExchangeTiming, MachineProfile
from profiles.models.profile import ModelProfile
from tests.machine_builders import curve, machine
from tests.plan_finder import predict

MODEL = load_model("llama-26m")
# What the law of a step by hand is about, beside the degrees.
PLAIN = Options(zero_stages=(0,), recompute=("none",), schedules=("1f1b",), offload=("none",), vocab_parallel=(0,))
ALL = Options(offload=("none",), vocab_parallel=(0, 1))


def space_of(
    target: MachineProfile | None = None,
    num_devices: int = 4,
    batch: int = 8,
    sequence: int = 128,
    model: ModelProfile = MODEL,
    options: Options = ALL,
    codec: str = "none",
) -> Space:
    at = measured_setting(target or machine(), model, num_devices, batch, sequence, "fp32", codec=codec)
    return explore(at, options)


def answer_of(space: Space, top: int = 3) -> Answer:
    return answer(in_order(space), top, False, ())


def best_of(space: Space) -> Plan:
    return answer_of(space, 1).file.candidates[0].plan


def plans_of(space: Space) -> list[Plan]:
    """All plans that are legal."""
    found = []
    for layout in range(len(space.layouts)):
        choices = space.choices(layout)
        for micro, schedule, recompute in np.ndindex(
            len(choices.micro_batch), len(choices.schedules), len(choices.share)
        ):
            if choices.legal[micro, schedule, recompute]:
                place = type(best_places(space, 1)[0])(layout, int(micro), int(schedule), int(recompute))
                found.append(plan_of(space, place))
    return found


@pytest.mark.parametrize(("num_devices", "batch"), [(1, 4), (2, 6), (4, 8), (6, 12), (12, 24)])
def test_every_legal_layout_is_there_and_no_other(num_devices, batch):
    expected = set()
    for d, t, p, c in itertools.product(range(1, num_devices + 1), repeat=4):
        if d * t * p * c != num_devices or batch % d or 8 % t or 1408 % t or 128 % (c * t) or p > 8:
            continue
        for b in range(1, batch // d + 1):
            if (batch // d) % b == 0 and batch // d // b >= p:
                expected.add((d, t, p, c, b))
    found = plans_of(space_of(num_devices=num_devices, batch=batch, options=PLAIN))
    assert {
        (one.data_parallel, one.tensor_parallel, one.pipeline_parallel, one.context_parallel, one.micro_batch_size)
        for one in found
    } == expected
    assert all(one.num_devices == num_devices and one.global_batch_size == batch for one in found)


def test_what_the_executor_runs_is_offered():
    plans = plans_of(space_of(num_devices=4, batch=16, model=MODEL))
    for what in (
        {"schedule": "interleaved-1f1b"}, {"schedule": "interleaved-zb"}, {"schedule": "zbv"},
        {"schedule": "dualpipev"}, {"context_parallel": 2}, {"sequence_parallel": True}, {"vocab_parallel": True},
        {"shard_degree": 2}, {"zero_stage": 2, "pipeline_parallel": 2}, {"zero_stage": 3, "pipeline_parallel": 2},
        {"recompute": "selective"}, {"recompute": "full", "recompute_layers": (1, 0)},
    ):  # fmt: skip
        assert any(
            all(
                len(getattr(one, name)) > 0 if name == "recompute_layers" else getattr(one, name) == value
                for name, value in what.items()
            )
            for one in plans
        ), what


def test_parts_and_kinds_sum_to_the_whole():
    space = space_of()
    places = best_places(space, 200)
    for prediction in predictions(space, places):
        assert sum(prediction.seconds.values()) == pytest.approx(prediction.step_seconds)
        assert sum(prediction.bytes_per_rank.values()) == pytest.approx(prediction.peak_bytes)
        assert set(prediction.seconds) == set(PART_NAMES)
        assert set(prediction.bytes_per_rank) == set(KINDS)
        assert prediction.low_seconds < prediction.step_seconds < prediction.high_seconds


def test_one_device_has_no_communication_and_no_bubble():
    space = space_of(num_devices=1)
    for prediction in predictions(space, best_places(space, 50)):
        for part in ("bubble", "tensor_comm", "data_comm", "pipeline_comm", "codec"):
            assert prediction.seconds[part] == 0


@settings(max_examples=10)
@given(st.sampled_from(["bandwidth", "flops", "memory_bytes"]), st.floats(1.05, 8))
def test_a_better_machine_never_makes_the_best_plan_slower(what, factor):
    base = {"bandwidth": 1e8, "flops": 1e11, "memory_bytes": 4e8}
    better = {**base, what: base[what] * factor}
    fast, slow = (space_of(machine(**numbers)).best.step_seconds[0] for numbers in (better, base))
    assert fast <= slow * (1 + 1e-9)


def test_more_choices_never_give_a_worse_best():
    few, many = space_of(options=PLAIN), space_of()
    assert many.best.step_seconds[0] <= few.best.step_seconds[0]


def plan(**changes: object) -> Plan:
    return Plan(**{"data_parallel": 4, "micro_batch_size": 2, "precision": "fp32", **changes})  # type: ignore[arg-type]


def test_memory_falls_with_the_zero_stage_and_with_recomputation():
    space = space_of(num_devices=4)
    by_stage = [predict(space, plan(zero_stage=zero)).peak_bytes for zero in range(4)]
    assert by_stage == sorted(by_stage, reverse=True)
    assert len(set(by_stage)) == 4
    assert predict(space, plan(recompute="full")).peak_bytes < by_stage[0]


def test_states_of_data_parallel_are_sixteen_bytes_per_parameter():
    held = predict(space_of(num_devices=2), plan(data_parallel=2, micro_batch_size=4)).bytes_per_rank
    states = held["parameters"] + held["gradients"] + held["optimizer"]
    assert states == pytest.approx(16 * MODEL.num_parameters)


def test_compute_is_the_flops_over_the_rate_where_only_products_cost():
    free = tuple(curve(kind) for kind in ("memory", "optimizer", "codec"))
    only = (*(k for k in machine().kernels if k.kind in ("matmul", "attention_forward", "attention_backward")), *free)
    space = space_of(machine(flops=1e11, kernels=only), num_devices=1, options=PLAIN)
    flops = MODEL.model_flops(8, 128)
    extra = 8 * 10 * 8 * 8 * 64 * 128**2 - 8 * 2 * 4 * 8 * 8 * 64 * 128**2  # attention's backward is 2.5 x its forward
    for size in (1, 2, 8):
        own = predict(space, plan(data_parallel=1, micro_batch_size=size, num_microbatches=8 // size))
        accumulated = MODEL.num_parameters * 12 / 1e10 * (8 // size)
        assert own.seconds["compute"] == pytest.approx((flops + extra) / 1e11 + accumulated, rel=1e-6)


def test_a_pipelines_actions_are_added_to_every_pass():
    action = 1e-3
    both = [space_of(machine(pipeline_action_seconds=own), num_devices=2) for own in (0.0, action)]
    piped = plan(
        data_parallel=1, pipeline_parallel=2, micro_batch_size=2, num_microbatches=4, schedule="1f1b",
        stage_bounds=(0, 5),
    )  # fmt: skip
    free, taken = (predict(space, piped).step_seconds for space in both)
    # Two passes of each of four micro-batches on the last stage, and one more of each on the way through the first.
    assert taken - free == pytest.approx((2 * 4 + 2) * action, rel=1e-6)


def test_the_baseline_is_shown_and_the_best_comes_first():
    file = answer_of(space_of()).file
    assert file.candidates[file.baseline].plan.data_parallel == 4
    steps = [one.prediction.step_seconds for one in file.candidates if not one.folded_into]
    assert steps[0] == min(steps)
    assert file.candidates[0].verdict.startswith("fastest")
    for candidate in file.candidates:
        candidate.plan.check(MODEL.num_layers)
    assert file.answers == Answers()


def test_a_slow_link_makes_another_choice_than_a_fast_one():
    fast = best_of(space_of(machine(bandwidth=1e12, latency=1e-7)))
    slow = best_of(space_of(machine(bandwidth=1e6)))
    assert fast != slow
    assert slow.pipeline_parallel > 1


def test_rejections_are_counted_by_reason():
    broken = space_of(num_devices=3, batch=8, options=PLAIN).broken
    assert broken["global batch not divisible by data parallel"] == 1
    assert broken["heads not divisible by tensor parallel"] == 1


def test_nothing_feasible_tells_counts_and_the_nearest_miss():
    with pytest.raises(NoFeasiblePlanError, match=r"nearest: states alone take 74.3 MiB of 977 KiB") as caught:
        answer_of(space_of(machine(memory_bytes=1e6)))
    assert caught.value.exit_code == 3
    assert space_of(machine(memory_bytes=1.5e8)).rejected[NO_ROOM] > 0


def test_a_codec_that_was_not_measured_is_named_instead_of_guessed():
    named = tuple(curve("codec", name="bf16") if k.kind == "codec" else k for k in machine().kernels)
    with pytest.raises(InputError, match=r"not measured for codec powersgd-8 .*measured: bf16"):
        space_of(machine(kernels=named), codec="powersgd-8")


def links_of(target: MachineProfile) -> MeasuredLinks:
    at = measured_setting(target, MODEL, 8, 8, 128, "fp32")
    source = at.source
    assert source is not None
    from planner.space.question import jobs_of

    links: MeasuredLinks = source.links(jobs_of(at, tensor=np.ones(1)))
    return links


@given(st.floats(1, 1e9), st.sampled_from([2, 3, 4, 8]))
def test_an_all_reduce_moves_what_two_halves_move(num_bytes, size):
    links, ranks = links_of(machine(latency=0.0)), np.array([float(size)])
    whole = float(links.seconds("all_reduce", np.array([num_bytes]), ranks, ranks)[0])
    # A two-rank all-reduce of this machine runs at its bandwidth; a ring of n moves 2(n-1)/n of the tensor.
    assert whole == pytest.approx(num_bytes / 1e9 * 2 * (size - 1) / size)


def test_links_that_leave_the_host_are_measured_or_named():
    alone = machine(links=tuple(link for link in machine().links if link.span == "node"), devices_per_node=2)
    two = np.array([2.0])
    with pytest.raises(InputError, match="measured over the network: profile it there, or name the network"):
        links_of(alone).seconds("all_reduce", two, two, np.ones(1))


@pytest.mark.parametrize("cluster", [None, "dgx-a100"])
def test_links_within_a_node_that_were_not_measured_are_asked_for(cluster: str | None) -> None:
    at = measured_setting(machine(links=()), MODEL, 4, 8, 128, "fp32", find_cluster(cluster) if cluster else None)
    with pytest.raises(InputError, match="measured within a node: profile more ranks"):
        explore(at, ALL)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_simulated_step_has_what_training_adds_to_an_exchange(zero_stage: int) -> None:
    late = tuple(
        ExchangeTiming(
            codec="none", zero_stage=stage, group_size=2, num_parameters=8e6, matrix_sides=16384.0,
            backward_seconds=0.05, added_seconds=added, spread_fraction=0.02,
        )
        for stage, added in [(0, 0.3), (1, 0.4), (2, 0.5)]
    )  # fmt: skip
    options = replace(PLAIN, zero_stages=(zero_stage,))
    space = space_of(machine(exchange_timings=late), 2, options=options)
    place = next(place for place in best_places(space, len(space.best)) if plan_of(space, place).data_parallel == 2)
    predicted = predictions(space, [place])[0].step_seconds
    assert predictions(space_of(machine(), 2, options=options), [place])[0].step_seconds < 0.7 * predicted
    assert simulate(step_work(space, place)).step_seconds == pytest.approx(predicted, rel=0.03)


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 1))
def test_overlap_lies_between_hiding_all_and_hiding_nothing(communication, compute, slowdown):
    factors = learned_of(machine(slowdown=slowdown)).factors
    added = float(exposed(np.array(communication), np.array(compute), factors))
    assert added >= max(0.0, communication - compute) - 1e-9
    assert added <= communication * (1 + slowdown) + 1e-9
    if slowdown == 0:
        assert added == pytest.approx(max(0.0, communication - compute))


def test_closed_form_is_close_to_replay_on_equal_stages():
    space = space_of(machine(latency=1e-6, bandwidth=1e12), num_devices=2, batch=16, options=PLAIN)
    piped = [place for place in best_places(space, 100) if space.layouts.pipeline[place.layout] > 1]
    timed = retimed(space, piped)
    rows = {place: row for row, place in enumerate(best_places(space, 100))}
    for place in piped:
        once = predictions(space, [place])[0].seconds["optimizer"]
        assert timed[place].makespan_seconds + once == pytest.approx(space.best.step_seconds[rows[place]], rel=0.03)


def test_corrected_factors_scale_what_they_are_of():
    space = space_of()
    one = predict(space, plan())
    assert isinstance(one, Prediction)
    assert one.method == "closed form"
