"""The search sees every legal plan, loses none, prices by the laws, and says why the others lost."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.measured.collectives import Group, collective_seconds, exposed_seconds, group_of
from planner.measured.explain import candidates, predict
from planner.measured.search import Choices, Search, search
from planner.parts import PART_NAMES
from planner.prediction import KINDS
from profiles.errors import InputError, NoFeasiblePlanError, UnknownNameError
from profiles.library import load_model
from profiles.machines.devices import device_names, load_device, machine_of
from tests.machine_builders import curve, machine

MODEL = load_model("llama-26m")


def run(target=None, num_devices=4, batch=8, sequence=128, model=MODEL, **choices) -> Search:
    options = {"precisions": ("fp32",), **choices}
    return search(
        target or machine(),
        model,
        Choices(num_devices=num_devices, global_batch_size=batch, sequence_length=sequence, **options),
    )


def rows(found: Search):
    return [
        (int(t.data_parallel[i]), int(t.tensor_parallel[i]), int(t.pipeline_parallel[i]), int(t.micro_batch_size[i]))
        for priced in found.priced
        for t in (priced.table,)
        for i in range(len(t))
    ]


@pytest.mark.parametrize(("num_devices", "batch"), [(1, 4), (2, 6), (4, 8), (6, 12), (12, 24)])
def test_every_legal_layout_is_there_and_no_other(num_devices, batch):
    expected = set()
    for d, t, p in itertools.product(range(1, num_devices + 1), repeat=3):
        if d * t * p != num_devices or batch % d or 8 % t or 1408 % t or p > 10:
            continue
        for b in range(1, batch // d + 1):
            if (batch // d) % b == 0 and batch // d // b >= p:
                expected.add((d, t, p, b))
    assert set(rows(run(num_devices=num_devices, batch=batch))) == expected


def test_the_rows_multiply_to_the_devices_and_the_batch():
    for priced in run(num_devices=12, batch=24).priced:
        t = priced.table
        assert (t.data_parallel * t.tensor_parallel * t.pipeline_parallel == 12).all()
        assert (t.data_parallel * t.micro_batch_size * t.num_microbatches == 24).all()


def test_parts_and_kinds_sum_to_the_whole():
    found = run()
    for priced in found.priced:
        for row in range(len(priced.table)):
            prediction = predict(found, priced, row)
            assert sum(prediction.seconds.values()) == pytest.approx(prediction.step_seconds)
            assert sum(prediction.bytes_per_rank.values()) == pytest.approx(prediction.peak_bytes)
            assert set(prediction.seconds) == set(PART_NAMES)
            assert set(prediction.bytes_per_rank) == set(KINDS)
            assert prediction.low_seconds < prediction.step_seconds < prediction.high_seconds
            assert min(prediction.seconds.values()) >= 0


def test_one_device_has_no_communication_and_no_bubble():
    for priced in run(num_devices=1).priced:
        for part in ("bubble", "tensor_comm", "data_comm", "pipeline_comm", "codec"):
            assert (priced.estimate.seconds[part] == 0).all()


@settings(max_examples=15)
@given(st.sampled_from(["bandwidth", "flops", "memory_bytes"]), st.floats(1.05, 8))
def test_a_better_machine_never_makes_the_best_plan_slower(what, factor):
    base = {"bandwidth": 1e8, "flops": 1e11, "memory_bytes": 3e8}
    better = {**base, what: base[what] * factor}
    assert candidates(run(machine(**better)), 1)[0][0].prediction.step_seconds <= (
        candidates(run(machine(**base)), 1)[0][0].prediction.step_seconds * (1 + 1e-9)
    )


def test_more_choices_never_give_a_worse_best():
    few = candidates(run(codecs=("none",), recompute=(0,)), 1)[0][0].prediction.step_seconds
    assert candidates(run(), 1)[0][0].prediction.step_seconds <= few


def test_memory_falls_with_the_zero_stage_and_with_recomputation():
    found = run(num_devices=4, codecs=("none",))
    t, peak = found.priced[0].table, found.priced[0].estimate.peak_bytes
    plain = (t.pipeline_parallel == 1) & (t.tensor_parallel == 1) & (t.micro_batch_size == 2)
    by_stage = [peak[plain & (t.recompute == 0) & (t.zero_stage == zero)][0] for zero in range(4)]
    assert by_stage == sorted(by_stage, reverse=True)
    assert len(set(by_stage)) == 4
    assert peak[plain & (t.recompute == 1) & (t.zero_stage == 0)][0] < by_stage[0]


def test_states_of_data_parallel_are_sixteen_bytes_per_parameter():
    found = run(num_devices=2, codecs=("none",))
    t, held = found.priced[0].table, found.priced[0].estimate.bytes_per_rank
    plain = (t.data_parallel == 2) & (t.zero_stage == 0)
    states = held["parameters"] + held["gradients"] + held["optimizer"]
    assert states[plain] == pytest.approx(16 * MODEL.num_parameters)


def test_compute_is_the_flops_over_the_rate_where_only_products_cost():
    target = machine(flops=1e11)
    free = tuple(curve(kind) for kind in ("memory", "optimizer", "codec"))
    only = (*(k for k in target.kernels if k.kind in ("matmul", "attention_forward", "attention_backward")), *free)
    found = run(machine(flops=1e11, kernels=only), num_devices=1, recompute=(0,))
    flops = MODEL.model_flops(8, 128)
    extra = 8 * 10 * 8 * 8 * 64 * 128**2 - 8 * 2 * 4 * 8 * 8 * 64 * 128**2  # attention's backward is 2.5 x its forward
    accumulated = MODEL.num_parameters * 12 / 1e10 * found.priced[0].table.num_microbatches
    expected = (flops + extra) / 1e11 + accumulated
    assert found.priced[0].estimate.seconds["compute"] == pytest.approx(expected, rel=1e-6)


def test_the_baseline_is_always_shown_and_the_best_comes_first():
    chosen, baseline = candidates(run(), 3)
    assert chosen[baseline].plan.data_parallel == 4
    assert chosen[baseline].plan.codec == "none"
    steps = [c.prediction.step_seconds for c in chosen]
    assert steps == sorted(steps)
    assert chosen[0].verdict.startswith("fastest")
    assert all(c.verdict.startswith(("+", "as fast", "equal")) for c in chosen[1:])
    for candidate in chosen:
        candidate.plan.check(MODEL.num_layers)


def test_a_slow_link_makes_another_choice_than_a_fast_one():
    fast = candidates(run(machine(bandwidth=1e12, latency=1e-7)), 1)[0][0].plan
    slow = candidates(run(machine(bandwidth=1e6)), 1)[0][0].plan
    assert fast != slow
    assert slow.pipeline_parallel > 1 or slow.codec != "none"
    assert fast.codec == "none"


def test_rejections_are_counted_by_reason():
    found = run(num_devices=3, batch=8)
    assert found.rejected["global batch 8 is not divisible by data parallel 3"] == 1
    assert found.rejected["heads 8 not divisible by tensor parallel 3"] == 1
    tied = run(model=load_model("gpt2-small"), num_devices=2)
    assert tied.rejected["tied embedding and head would sit on different pipeline stages"] == 1


def test_nothing_feasible_tells_counts_and_the_nearest_miss():
    with pytest.raises(NoFeasiblePlanError, match=r"does not fit in memory.*nearest: .* over on stage") as caught:
        candidates(run(machine(memory_bytes=1e6)), 3)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"sequence": 5000}, "takes 1 to 1024 tokens"),
        ({"batch": 0}, "--global-batch 0: must be at least 1"),
        ({"precisions": ("fp7",)}, "unknown precision 'fp7': did you mean 'fp32'"),
    ],
)
def test_bad_choices_are_one_sentence(choices, sentence):
    with pytest.raises(InputError, match=sentence):
        run(**choices)


@pytest.mark.parametrize("name", device_names())
def test_shipped_devices_plan_an_8b_model(name):
    found = run(machine_of(load_device(name), 64), 64, 512, 4096, load_model("llama-3.1-8b"), precisions=("bf16",))
    best = candidates(found, 1)[0][0].prediction
    assert 0.02 < best.mfu < 0.75
    assert best.peak_bytes <= found.machine.memory_bytes


def test_unknown_device_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'h100-sxm'"):
        load_device("h100sxm")


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([1, 4, 8]))
def test_a_group_inside_a_node_is_never_larger_than_either(degree, stride, node):
    group = group_of(degree, stride, node)
    assert 1 <= group.inside <= min(degree, node)


@given(st.floats(1, 1e9), st.sampled_from([2, 3, 4, 8, 16]))
def test_an_all_reduce_moves_what_two_halves_move(num_bytes, size):
    target, group = machine(latency=0.0), Group(size, size)
    whole = float(collective_seconds(target, "all_reduce", num_bytes, group)[0])
    # A two-rank all-reduce of this machine runs at its bandwidth; a ring of n moves 2(n-1)/n of the tensor.
    assert whole == pytest.approx(num_bytes / 1e9 * 2 * (size - 1) / size)


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 1))
def test_overlap_lies_between_hiding_all_and_hiding_nothing(communication, compute, slowdown):
    exposed = float(exposed_seconds(machine(slowdown=slowdown), communication, compute))
    assert exposed >= max(0.0, communication - compute) - 1e-9
    assert exposed <= communication + 1e-9
    if slowdown == 0:
        assert exposed == pytest.approx(max(0.0, communication - compute))


def test_closed_form_equals_replay_on_equal_stages():
    found = run(machine(latency=1e-6, bandwidth=1e12), num_devices=2, batch=16, codecs=("none",))
    priced = found.priced[0]
    worst = 0.0
    for row in np.flatnonzero(priced.table.pipeline_parallel > 1):
        prediction = predict(found, priced, int(row))
        end = max(s.stop_seconds for s in prediction.spans)
        worst = max(worst, abs(prediction.step_seconds / end - 1))
    assert worst < 0.03


def test_a_codec_that_was_not_measured_is_named_instead_of_guessed():
    measured = machine()
    named = tuple(curve("codec", name="bf16") if k.kind == "codec" else k for k in measured.kernels)
    with pytest.raises(InputError, match=r"not measured for codec powersgd-8 .*measured: bf16"):
        run(machine(kernels=named), codecs=("none", "powersgd-8"))
