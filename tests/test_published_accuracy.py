"""Published runs, predicted from their configuration: a family's error must not grow. Factors are those shipped."""

import csv

import numpy as np
import pytest

from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.published.calibrate import RUNS, shipped_runs
from planner.published.learn import learn
from planner.published.predict import forecast
from tests.accuracy import checks, left_out

# Median error of each family with the shipped factors, a little above what README reports.
MEDIANS = {
    "dgxc": 0.04, "korthikanti": 0.045, "llmfoundry": 0.05, "megatron_readme2020": 0.04, "megatron_sc21": 0.05,
    "nanotron_bench": 0.085, "simumax_b200": 0.025, "torchao": 0.055, "vtrain_multi": 0.045, "vtrain_single": 0.075,
}  # fmt: skip

# Checks of `make accuracy` that fall short of their goal, a little above what they reach.
MISSED_BY = {
    "step time, each family from the others: median": 0.07,
    "step time, fitted on all: median": 0.042,
    "vtrain, one node, fitted: mean": 0.082,
    "simumax, 44 runs on B200, fitted: mean": 0.032,
    "korthikanti and megatron_sc21, fitted: mean": 0.047,
}


@pytest.fixture(scope="module")
def rows():
    with RUNS.open(newline="") as stream:
        # Adapters are not priced yet.
        return [row for row in csv.DictReader(stream) if row["peft"] in ("", "none")]


@pytest.fixture(scope="module")
def forecasts(rows):
    return forecast(rows)


@pytest.mark.parametrize("family", MEDIANS)
def test_the_error_of_a_family_does_not_grow(rows, forecasts, family):
    errors = [
        abs(made.step_seconds / float(row["step_time_s"]) - 1)
        for row, made in zip(rows, forecasts, strict=True)
        if row["family"] == family
    ]
    assert np.median(errors) <= MEDIANS[family]


def test_parts_add_up_and_bands_hold_the_prediction(forecasts):
    for made in forecasts:
        assert made.refused is None
        assert sum(made.seconds.values()) == pytest.approx(made.step_seconds)
        assert sum(made.bytes.values()) == pytest.approx(made.allocated_bytes)
        assert made.low_seconds < made.step_seconds < made.high_seconds


def test_families_left_out_are_predicted_as_well_as_reported():
    runs = shipped_runs()
    made = ingredients_of(runs.jobs)
    reached = {check.name: check for check in checks(runs, made, *left_out(runs, made))}
    missed = {name for name, check in reached.items() if not check.holds}
    # README names these as missed, and by how much.
    assert missed <= set(MISSED_BY)
    for name in missed:
        assert reached[name].reached <= MISSED_BY[name]


def test_the_shipped_factors_are_what_the_shipped_runs_teach():
    learned, shipped = learn(shipped_runs()), load_learned()
    for name in learned.factors.__slots__:
        assert getattr(shipped.factors, name) == pytest.approx(getattr(learned.factors, name), rel=0.02, abs=0.005)


def test_more_bandwidth_is_never_slower_and_one_rank_costs_no_communication(rows):
    faster = [{**row, "nic_gbit_per_s_per_gpu": "3200"} for row in rows]
    for before, after in zip(forecast(rows), forecast(faster), strict=True):
        if float(before.seconds["pipeline_comm"] + before.seconds["data_comm"]) > 0:
            assert after.step_seconds <= before.step_seconds * (1 + 1e-9)
    for row, made in zip(rows, forecast(rows), strict=True):
        if row["tp"] == "1":
            assert made.seconds["tensor_comm"] == 0
        if row["pp"] == "1":
            assert made.seconds["pipeline_comm"] == made.seconds["bubble"] == 0
