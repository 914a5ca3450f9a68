"""Two kinds of devices: against brute force, against the search of one kind, and laws that hold whatever the kinds."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from planner.command import app
from planner.cost.factors import load_learned
from planner.mixed.answers import mixed_answer
from planner.mixed.mixture import legal_rows, mixture
from planner.mixed.replicas import balanced, share
from planner.mixed.stages import deal, fewest_seconds
from planner.plans import Plan
from planner.prediction import PlanFile
from planner.schedules.placement import Layers, place
from planner.schedules.steps import Shape
from planner.space.answers import answer
from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.question import setting
from planner.space.replay_best import in_order
from profiles import artifacts
from profiles.errors import ArtifactError, InputError, PlanError, TrainwrightError, UnknownNameError
from profiles.library import load_sizes
from profiles.machines.clusters import find_cluster, load_pools
from profiles.machines.devices import load_device

BATCH, SEQUENCE = 64, 4096
RUNNER = CliRunner()


def asked(*entries, batch=BATCH, model="llama-3.1-8b", gb_per_second=None):
    cluster = find_cluster(",".join(entries))
    return mixture(load_sizes(model), load_pools(cluster), batch, SEQUENCE, "trainwright", "bf16", gb_per_second)


def answered(*entries, **choices):
    return mixed_answer(asked(*entries, **choices), 10, True, ())


def best_seconds(*entries, **choices):
    return answered(*entries, **choices).candidates[0].prediction.step_seconds


@pytest.fixture(scope="module")
def found():
    return answered("dgx-h100:8", "dgx-a100:8")


@st.composite
def stage_tables(draw):
    stages = draw(st.integers(2, 4))
    total = draw(st.integers(stages, 9))
    numbers = st.integers(1, 40)
    each, ends = (np.array([draw(st.lists(numbers, min_size=stages, max_size=stages))], dtype=float) for _ in range(2))
    most = np.array([draw(st.lists(st.integers(0, 9), min_size=stages, max_size=stages))])
    return each, ends, most, total


@given(stage_tables())
def test_layers_are_dealt_out_as_brute_force_would(table):
    each, ends, most, total = table
    stages = each.shape[1]
    ways = [
        way
        for way in itertools.product(range(1, total + 1), repeat=stages)
        if sum(way) == total and (np.array(way) <= most[0]).all()
    ]
    layers, possible = fewest_seconds(each, ends, most, total)
    assert bool(possible[0]) == bool(ways)
    if ways:
        assert layers[0].sum() == total
        assert (layers <= most).all()
        assert (layers * each + ends).max() == min(float((np.array(way) * each + ends).max()) for way in ways)


def test_layers_of_one_kind_are_dealt_out_as_the_exact_placement_does():
    stages, total, head = 4, 30, 2.5
    layers, _ = fewest_seconds(np.ones((1, stages)), np.array([[0, 0, 0, head]]), np.full((1, stages), total), total)
    seconds = np.array([0.0, *[1.0] * total, head])
    none = np.zeros_like(seconds)
    exact = place(
        Layers(seconds=seconds, state_bytes=none, kept_bytes=none, working_bytes=none), Shape("1f1b", 4, 1, 8), 1.0
    )
    assert (layers[0] + [0, 0, 0, head]).max() == exact.slowest_stage_seconds


@given(st.integers(2, 60), st.integers(1, 4), st.integers(1, 4), st.floats(0.1, 9), st.floats(0.1, 9), st.floats(0, 5))
def test_microbatches_are_shared_out_as_brute_force_would(total, ours, theirs, fast, slow, base):
    lines = [(np.array([0.0]), np.array([fast])), (np.array([base]), np.array([slow]))]
    first, second = balanced(np.array([float(total)]), (np.array([ours]), np.array([theirs])), np.array([1.0]), lines)
    ways = [
        max(a * fast, base + b * slow)
        for a in range(1, total + 1)
        for b in range(1, total + 1)
        if a * ours + b * theirs == total
    ]
    if not ways:
        assert np.isinf(first[0])
    else:
        assert first[0] * ours + second[0] * theirs == total
        assert max(first[0] * fast, base + second[0] * slow) == pytest.approx(min(ways))


def test_two_pools_of_one_kind_are_what_the_search_of_that_kind_says():
    pools = answered("dgx-h100:8", "dgx-h100:8")
    at = setting(load_sizes("llama-3.1-8b"), load_device("h100-sxm"), 16, BATCH, SEQUENCE, "trainwright", "bf16")
    space = in_order(explore(at, Options(offload=("none",), schedules=("1f1b",))))
    ordinary = {own.plan.id: own for own in answer(space, 200, True, ()).file.candidates}
    same = [(own, ordinary[own.plan.id]) for own in pools.candidates if own.plan.id in ordinary]
    assert {own.plan.pipeline_parallel > 1 for own, _ in same} == {True, False}
    for own, other in same:
        assert own.prediction.step_seconds == pytest.approx(other.prediction.step_seconds, rel=0.03), own.plan.id
        if own.plan.stage_bounds == other.plan.stage_bounds:
            assert own.prediction.peak_bytes == pytest.approx(other.prediction.peak_bytes, rel=0.01), own.plan.id


def test_the_order_in_which_pools_are_named_changes_nothing(found):
    turned = answered("dgx-a100:8", "dgx-h100:8")
    assert [own.prediction.step_seconds for own in turned.candidates] == pytest.approx(
        [own.prediction.step_seconds for own in found.candidates]
    )


def test_a_faster_second_pool_or_network_never_slows_the_best_down(found):
    slow = found.candidates[0].prediction.step_seconds
    assert best_seconds("dgx-h100:8", "dgx-h100:8") <= slow
    assert best_seconds("dgx-a100:8", "dgx-a100:8") >= slow
    assert best_seconds("dgx-h100:8", "dgx-a100:8", gb_per_second=1.0) >= slow


def test_plans_are_whole_and_fit(found):
    assert found.num_legal > found.rejected.get("does not fit in memory", 0) >= 0
    for candidate in found.candidates:
        plan, prediction = candidate.plan, candidate.prediction
        plan.check(found.num_layers)
        assert plan.num_devices == 16
        assert plan.global_batch_size == BATCH
        assert len(plan.stage_bounds) == plan.pipeline_parallel
        assert prediction.peak_bytes <= 80 * 2**30
        assert sum(prediction.seconds.values()) == pytest.approx(prediction.step_seconds)
        assert sum(prediction.bytes_per_rank.values()) == pytest.approx(prediction.peak_bytes)


def test_the_slower_kind_takes_fewer_layers_and_fewer_microbatches():
    mixed = asked("dgx-h100:8", "dgx-a100:8")
    learned = load_learned()
    for turned in (mixed, mixed.turned()):
        h100 = 0 if "h100" in turned.first.at.device.name else 1
        piped, _ = legal_rows(turned)
        for own in deal(turned, piped, learned):
            # Memory may force it otherwise; the fastest plan has the choice. Ends of the model cost their stages more.
            if own.layers.shape[1] >= 4:
                middle = own.layers[np.where(own.fits, own.step_seconds, np.inf).argmin(), 1:-1]
                pools = [middle[: own.second - 1], middle[own.second - 1 :]]
                assert pools[h100].min() > pools[1 - h100].max()
    _, replicated = legal_rows(mixed)
    shared = share(mixed, replicated, learned)
    uneven = ~shared.is_even
    assert uneven.any()
    assert (shared.counts[0][uneven] > shared.counts[1][uneven]).all()


def test_replicas_may_take_different_counts_of_microbatches():
    plan = Plan(data_parallel=3, micro_batch_size=2, num_microbatches=5, replica_microbatches=(5, 5, 1))
    plan.check(4)
    assert plan.global_batch_size == 22
    assert "mb2x5" in plan.id
    for counts in ((5, 5), (4, 4, 1), (5, 5, 0)):
        with pytest.raises(PlanError, match="replica_microbatches"):
            Plan(data_parallel=3, num_microbatches=5, replica_microbatches=counts).check(4)


def plan_command(*arguments):
    return RUNNER.invoke(
        app, ["--model", "llama-3.1-8b", "--gpus", "16", "--global-batch", str(BATCH), *arguments], prog_name="plan"
    )


def test_the_command_plans_for_pools_named_in_a_file(tmp_path):
    file = tmp_path / "ours.toml"
    file.write_text(
        'name = "ours"\ntitle = "ours"\nnetwork_gb_per_second = 12.5\n'
        '[[pools]]\nof = "dgx-h100"\nnum_devices = 8\n[[pools]]\nof = "a100-sxm-80gb"\nnum_devices = 8\n'
    )
    done = plan_command("--cluster", str(file), "-o", str(tmp_path / "plan.json"), "--json")
    assert done.exit_code == 0, done.output
    answer = artifacts.read(tmp_path / "plan.json", "plan", PlanFile)
    assert answer.num_devices == 16
    assert json.loads(done.stdout)
    assert [(alone.num_devices, alone.device) for alone in answer.answers.pools] == [
        (8, "h100-sxm"), (8, "a100-sxm-80gb"),
    ]  # fmt: skip
    assert "the 8 x a100-sxm-80gb alone would reach" in done.stderr
    assert not any("codecs" in note for note in answer.notes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cluster", "dgx-h100:8,dgx-a100:4"], "have 12"),
        (["--cluster", "dgx-h100:8,dgx-a100"], "name:devices"),
        (["--cluster", "dgx-h100:16"], "at least two"),
        (["--cluster", "dgx-h100:8,dgx-a100:4,dgx-a100:4"], "two kinds"),
        (["--cluster", "dgx-h100:8,dgx-a10:8"], "dgx-a100"),
        (["--cluster", "dgx-h100:8,dgx-a100:8", "--sensitivity"], "--sensitivity needs a cluster of one kind"),
        (["--cluster", "dgx-h100:8,dgx-a100:8", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["--cluster", "dgx-h100:8,dgx-a100:8", "--device", "h100-sxm"], "--device needs a cluster of one kind"),
        (["--cluster", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, words):
    done = plan_command(*arguments)
    assert isinstance(done.exception, TrainwrightError)
    assert words in str(done.exception)


def test_errors_have_their_types(tmp_path):
    with pytest.raises(UnknownNameError):
        find_cluster("dgx-h1000")
    with pytest.raises(InputError):
        find_cluster("dgx-h100:x")
    with pytest.raises(ArtifactError):
        find_cluster(str(tmp_path / "none.toml"))
