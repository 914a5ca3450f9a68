"""What a fit finds: what was put in, its own uncertainty, nothing of what was left out; and bands by distance."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.error_bands import COVERAGE, FARTHEST, distance, half_width, remarks, scales_at, scales_for, unseen
from planner.cost.factors import ALL, PRODUCT_NUMBER, STACK_NUMBERS, expected
from planner.cost.ingredients import ingredients_of
from planner.cost.job import Each
from planner.cost.software_time import rules_of
from planner.published.calibrate import as_toml, shipped_runs, shown
from planner.published.constants import DIRECTIONS, OFFSET, constants_of, learned_at
from planner.published.learn import bounded_minimum, learn, predict, total_seconds
from planner.published.left_out import (
    FAMILY,
    GENERATION,
    LeftOut,
    band_scales,
    is_covered,
    leave_out,
    links_without,
    tables_left_with,
    without_tables,
)
from profiles.artifacts import validate
from profiles.laws.collectives import link_constants
from profiles.machines.stacks import load_stack

NUMBER = 40


@pytest.fixture(scope="module")
def runs():
    """A few runs of every family."""
    whole = shipped_runs()
    draw = np.random.default_rng(0)
    kept = []
    for name in np.unique(whole.family):
        own = np.flatnonzero(whole.family == name)
        kept += sorted(draw.permutation(own)[:NUMBER].tolist())
    return whole.take(np.array(kept))


@pytest.fixture(scope="module")
def made(runs):
    return ingredients_of(runs.jobs)


@pytest.fixture(scope="module")
def whole(runs, made):
    return learn(runs, made)


def test_a_constant_moves_the_runs_it_names_as_its_direction_says(runs, made, whole):
    at = np.log(total_seconds(predict(made, whole.learned)))
    for index, constant in enumerate(whole.constants):
        if constant.direction == OFFSET or index % 7:
            continue
        x = whole.x.copy()
        x[index] += 1e-4
        found = (np.log(total_seconds(predict(made, learned_at(whole.constants, x)))) - at) / 1e-4
        slope = whole.slopes[:, DIRECTIONS.index(constant.direction)] * constant.runs
        # What hides behind something else may begin or cease to show on the way; the slopes are a step or two old.
        assert np.quantile(np.abs(found - slope), 0.9) < 0.02, constant.name


def test_what_was_put_in_is_found_and_what_no_run_tells_stays(runs, made):
    constants = constants_of(runs.jobs, runs.family, np.ones(len(runs.jobs), dtype=bool))
    x = np.array([constant.mean for constant in constants])
    names = [constant.name for constant in constants]
    x[names.index("factors.matmul")] += 0.05
    x[names.index("stacks.megatron-lm.element_passes")] += 0.2
    true = total_seconds(predict(made, learned_at(constants, x)))
    found = learn(replace(runs, step_seconds=true), made)
    errors = np.log(total_seconds(predict(made, found.learned)) / true)
    assert np.abs(errors).max() < 0.03
    assert found.learned.factors.matmul > 1.02 * np.exp(0.02)
    assert found.learned.stacks["megatron-lm"]["element_passes"] > 1.015
    for name, (before, after) in found.learned.spreads.items():
        assert 0 < after <= before * (1 + 1e-9), name
    told = [after / before for before, after in found.learned.spreads.values()]
    assert min(told) < 0.8 < max(told)


def test_a_slow_site_is_no_slow_kernel(runs, made, whole):
    slow, by = runs.family == "megatron_sc21", 1.1
    found = learn(replace(runs, step_seconds=runs.step_seconds * np.where(slow, by, 1.0)), made, near=whole)
    # Others ran the same software on the same devices: most is the site's.
    moved = np.log(total_seconds(predict(made, found.learned)) / total_seconds(predict(made, whole.learned)))
    offset = found.learned.offsets["megatron_sc21"] - whole.learned.offsets["megatron_sc21"]
    assert offset > 0.25 * np.log(by)
    assert np.abs(moved).max() < np.log(by)
    assert offset + moved[slow].mean() > 0.5 * np.log(by)
    # As a prediction never uses offsets, none makes one slower.
    bare = total_seconds(predict(made, replace(found.learned, offsets={})))
    assert np.array_equal(bare, total_seconds(predict(made, found.learned)))


def test_a_fit_from_near_by_is_the_fit_from_afar(runs, made, whole):
    chosen = runs.family != "torchao"
    near, far = (learn(runs, made, chosen, start) for start in (whole, None))
    seconds = [total_seconds(predict(made, fit.learned)) for fit in (near, far)]
    assert np.quantile(np.abs(np.log(seconds[0] / seconds[1])), 0.9) < 0.01


def test_what_is_left_out_is_not_looked_at(runs, made, whole):
    own = runs.family == "korthikanti"
    spoilt = replace(runs, step_seconds=runs.step_seconds * np.where(own, 3.0, 1.0))
    seconds = [total_seconds(predict(made, learn(one, made, ~own).learned)) for one in (runs, spoilt)]
    assert np.array_equal(*seconds)
    assert "korthikanti" not in learn(spoilt, made, ~own).learned.offsets


def test_what_has_no_runs_is_the_mean_of_its_parent(runs, whole):
    jobs, learned = runs.jobs, whole.learned
    for name in ("torch", "megatron-core"):
        stack = replace(load_stack(name), name="new")
        other = replace(jobs, stack=Each.same(stack, len(jobs)))
        plain = rules_of(other, expected())
        for number in STACK_NUMBERS:
            mean = learned.everyone.get(number, 1.0) * learned.groups.get(stack.group, {}).get(number, 1.0)
            own = getattr(rules_of(other, replace(learned, products={})), number)
            assert np.allclose(own, getattr(plain, number) * mean)
    bare = rules_of(jobs, replace(learned, products={}))
    products = rules_of(jobs, learned).product_slowdown / bare.product_slowdown
    hopper = jobs.device.words(lambda one: one.generation) == "hopper"
    table = learned.products["hopper"]
    assert np.allclose(products[hopper & (jobs.precision == "bf16")], table[ALL] * table["bf16"])
    assert np.allclose(rules_of(jobs, replace(learned, products={"ada": {ALL: 2.0}})).product_slowdown,
                       bare.product_slowdown)  # fmt: skip


def test_a_generation_without_tables_is_priced_by_a_relative(runs, made, whole):
    bare = without_tables(made, frozenset({"hopper"}))
    hopper = runs.jobs.device.words(lambda one: one.generation) == "hopper"
    before, after = (total_seconds(predict(one, whole.learned)) for one in (made, bare))
    # Kernels are of a generation; the law of links is one for all, a little off without a generation's machines.
    alone = ~hopper & (runs.jobs.num_devices == 1)
    assert np.array_equal(before[alone], after[alone])
    assert np.abs(np.log(after[~hopper] / before[~hopper])).max() < 0.3
    assert links_without(frozenset({"hopper"})) == links_without(frozenset({"hopper"}))
    assert links_without(frozenset({"hopper"})).network_fraction != link_constants().network_fraction
    assert np.all(before[hopper] != after[hopper])
    assert 0.5 < np.median(after[hopper] / before[hopper]) < 2
    # Nothing of it is kept: the jobs are as they were.
    assert np.array_equal(total_seconds(predict(made, whole.learned)), before)
    own = runs.family == "simumax_b200"
    assert tables_left_with(runs, FAMILY, "simumax_b200", own) >= {"blackwell"}
    assert tables_left_with(runs, FAMILY, "dgxc", runs.family == "dgxc") == frozenset()
    assert tables_left_with(runs, GENERATION, "volta", own) == {"volta"}


def test_distance_counts_what_no_run_had(runs, whole):
    jobs, learned = runs.jobs, whole.learned
    assert not distance(jobs, learned).any()
    assert remarks(jobs, learned) == [()] * len(jobs)
    odd = replace(jobs, stack=Each.same(replace(load_stack("xla"), name="new"), len(jobs)))
    flags = unseen(odd, learned)
    assert flags["stack"].all()
    assert flags["stack_on"].all()
    assert (distance(odd, learned) == 2).all()
    odd = replace(odd, recompute=np.full(len(jobs), "new"))
    assert (distance(odd, learned) == FARTHEST).all()
    words = remarks(odd, learned)[0][0]
    assert words.startswith("outside of what was measured: no run had its software, recomputation")
    # Of the same seconds a stranger's band is never narrower.
    parts = {"compute": np.ones(len(jobs))}
    learned = replace(learned, band_scales=(1.5, 2.0, 2.0, 3.0))
    assert np.all(half_width(odd, parts, learned) > half_width(jobs, parts, learned))


@given(st.integers(0, 10_000), st.floats(0.2, 3.0))
def test_bands_hold_their_share_at_every_distance_and_never_shrink(seed, size):
    draw = np.random.default_rng(seed)
    count = 200
    errors, spreads = draw.standard_t(3, count) * size, draw.uniform(0.5, 2.0, count)
    distances, weights = draw.integers(0, FARTHEST + 1, count), draw.uniform(0.1, 1.0, count)
    scales = scales_for(errors, spreads, distances, weights)
    assert list(scales) == sorted(scales)
    inside = np.abs(errors) <= spreads * scales_at(scales, distances) * (1 + 1e-12)
    for scale in set(scales):
        own = np.isin(distances, [number for number in range(FARTHEST + 1) if scales[number] == scale])
        held = weights[own & inside].sum() / weights[own].sum()
        assert COVERAGE - 1e-9 <= held <= COVERAGE + weights[own].max() / weights[own].sum() + 1e-9


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_a_bounded_step_stays_inside_and_is_newtons_where_nothing_binds(seed, size):
    draw = np.random.default_rng(seed)
    root = draw.normal(size=(size, size))
    hessian, slope = root @ root.T + np.eye(size), draw.normal(size=size)
    free = np.linalg.solve(hessian, -slope)
    wide = np.full(size, 1e3)
    assert np.allclose(bounded_minimum(hessian, slope, -wide, wide), free)
    near = draw.uniform(0.01, 1.0, size)
    found = bounded_minimum(hessian, slope, -near, near)
    assert np.all(np.abs(found) <= near)


def test_bands_are_judged_without_the_family_of_the_run(runs):
    count = len(runs.jobs)
    family = np.array([f"family {number % 25}" for number in range(count)])
    own = replace(runs, family=family)
    errors = np.where(family == "family 3", 1.0, 0.05)
    found = LeftOut(
        kind=np.full(count, FAMILY), part=family, run=np.arange(count), spread=np.ones(count),
        step_seconds=runs.step_seconds * np.exp(errors), distance=np.zeros(count, dtype=np.int64),
    )  # fmt: skip
    inside = is_covered(replace(found, spread=found.spread * 1.0), own)
    assert not inside[family == "family 3"].any()
    assert band_scales(found, own)[0] == pytest.approx(0.05)


def test_families_left_out_one_by_one_make_every_run_once(runs, made, whole):
    few = runs.take(np.isin(runs.family, ("korthikanti", "megatron_sc21", "nanotron_bench")))
    own = ingredients_of(few.jobs)
    found = leave_out(few, own, learn(few, own), (FAMILY,))
    assert sorted(found.run.tolist()) == list(range(len(few.jobs)))
    assert set(found.distance.tolist()) <= set(range(FARTHEST + 1))


def test_the_file_says_what_was_learned(whole, tmp_path):
    from planner.cost.factors import Learned
    from profiles.artifacts import read_toml

    path = tmp_path / "factors.toml"
    path.write_text(as_toml(whole.learned))
    back = read_toml(path, Learned)
    assert back.seen == whole.learned.seen
    assert back.factors.matmul == pytest.approx(whole.learned.factors.matmul, abs=1e-5)
    assert set(back.spreads) == set(whole.learned.spreads) == {constant.name for constant in whole.constants}


def test_the_list_warns_of_bounds_and_of_what_stands_in_for_mechanisms(whole):
    quiet = replace(whole.learned.factors, tensor_comm=1.0, data_comm=1.0, expert_comm=1.0, pipeline_comm=1.0,
                    context_comm=1.0)  # fmt: skip
    odd = replace(quiet, tensor_comm=1.5, data_comm=0.75)
    lines = shown(replace(whole.learned, factors=odd))
    assert any("factors.tensor_comm is 1.500, at a bound" in line for line in lines)
    assert sum("a mechanism of messages is missing" in line for line in lines) == 2
    assert not any("mechanism" in line for line in shown(replace(whole.learned, factors=quiet)))
    assert validate  # the strict reader


def test_unknown_software_widens_the_band(whole):
    assert set(whole.learned.unknown) == {"stack", "group", "generation", "precision"}
    assert all(0.01 < value < 0.2 for value in whole.learned.unknown.values())
    assert PRODUCT_NUMBER in STACK_NUMBERS
