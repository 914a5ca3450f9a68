"""Rows, cases and summary against numbers worked out by hand and scipy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from executor.run.measurement import LossCheck, PlanRun, RunFile
from planner.plans import Plan
from planner.prediction import Span
from planner.timeline import bubble_fraction, busy_seconds
from profiles.errors import ArtifactError
from reports.cases import cases_of
from reports.comparison import Row, Source, kind_of_plan, rows_of
from reports.report import build
from reports.summary import summarise, verdict
from tests.report_builders import (
    beside,
    demo_run_file,
    measurement,
    prediction,
    run_file,
    simple_run,
    simulate_pipeline,
    with_tail,
)

SECONDS = st.floats(1e-3, 1e3)


def row_of(run: PlanRun) -> Row:
    return rows_of(Source(name="run.json", file=run_file([run])))[0]


def cases_for(*files: RunFile):
    return cases_of([Source(name=f"run{index}.json", file=file) for index, file in enumerate(files)])


def test_row_by_hand():
    row = row_of(simple_run(1.1, [1.0, 0.9, 1.2, 1.0, 1.1], compute=0.8))
    assert row.measured_seconds == 1.0
    assert (row.measured.lower_seconds, row.measured.upper_seconds) == (1.0, 1.1)
    assert row.measured.spread_fraction == pytest.approx(0.1)
    assert row.error_fraction == pytest.approx(0.1)
    assert row.is_inside_band  # 0.99 to 1.232
    assert row.part_difference_seconds("compute") == pytest.approx(0.3)
    assert row.part_difference_seconds("data_comm") is None


def test_memory_is_the_fullest_rank():
    run = replace(
        simple_run(1.0, [1.0]),
        prediction=replace(
            prediction({"compute": 1.0}, {"parameters": 1.0}), peak_bytes=80.0, stage_peak_bytes=(80.0, 120.0)
        ),
        measurement=measurement([1.0], peak_bytes=(90.0, 100.0)),
    )
    row = row_of(run)
    assert (row.predicted_peak_bytes, row.measured_peak_bytes) == (120.0, 100.0)
    assert row.memory_error_fraction == pytest.approx(0.2)
    assert row_of(simple_run(1.0, [1.0])).memory_error_fraction is None


def test_summary_by_hand():
    # Errors: 1.0 / 1.0 - 1 = 0; 1.1 / 1.0 - 1 = +10 %; 1.2 / 1.5 - 1 = -20 %.
    runs = [simple_run(1.0, [1.0], 1), simple_run(1.1, [1.0], 2), simple_run(1.2, [1.5], 3)]
    summary = summarise(cases_for(run_file(runs)))
    assert summary.median_error_fraction == pytest.approx(0.10)
    assert summary.p90_error_fraction == pytest.approx(0.18)  # between 10 % and 20 %, linearly
    assert summary.bias_fraction == pytest.approx(-0.1 / 3)
    assert summary.inside_band_fraction == pytest.approx(2 / 3)  # 1.5 is above 1.2 x 1.12
    assert summary.measured_speedup is None


def test_regret_speedup_and_order():
    baseline = replace(simple_run(1.3, [1.2], 3), is_baseline=True)
    runs = [simple_run(1.0, [1.1], 1), simple_run(1.1, [1.0], 2), baseline]
    (case,) = cases_for(run_file(runs))
    assert case.top1_regret_fraction == pytest.approx(0.1)
    assert case.measured_speedup == pytest.approx(1.2 / 1.1)
    assert case.predicted_speedup == pytest.approx(1.3)
    assert case.rank_correlation == pytest.approx(0.5)  # ranks 1 2 3 against 2 1 3
    assert not case.is_choice_within_noise
    assert "slower than the fastest" in verdict(case)[0].text


def test_choice_within_noise_when_quartiles_touch():
    runs = [simple_run(1.0, [0.9, 1.05, 1.2], 1), simple_run(1.1, [0.9, 1.0, 1.1], 2)]
    (case,) = cases_for(run_file(runs))
    assert case.is_choice_within_noise
    assert "within noise" in verdict(case)[0].text


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=2, max_size=8))
@settings(max_examples=40)
def test_rank_correlation_is_scipys(pairs):
    runs = [simple_run(predicted, [measured], rank) for rank, (predicted, measured) in enumerate(pairs, start=1)]
    (case,) = cases_for(run_file(runs))
    predicted, measured = np.array(pairs).T
    if len(set(predicted)) > 1 and len(set(measured)) > 1:
        assert case.rank_correlation == pytest.approx(stats.spearmanr(predicted, measured).statistic)
    else:
        assert case.rank_correlation is None
    assert case.top1_regret_fraction == pytest.approx(measured[0] / min(measured) - 1)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=6), st.floats(0.01, 100))
@settings(max_examples=30)
def test_summary_does_not_depend_on_the_unit(pairs, scale):
    def summary(factor: float):
        runs = [simple_run(factor * p, [factor * m], rank) for rank, (p, m) in enumerate(pairs, start=1)]
        return summarise(cases_for(run_file(runs)))

    one, other = summary(1.0), summary(scale)
    assert one.median_error_fraction == pytest.approx(other.median_error_fraction, abs=1e-9)
    assert one.p90_error_fraction == pytest.approx(other.p90_error_fraction, abs=1e-9)
    assert one.bias_fraction == pytest.approx(other.bias_fraction, abs=1e-9)


def test_repeated_runs_of_a_plan_show_the_noise():
    first, second = run_file([simple_run(1.0, [1.0])]), run_file([simple_run(1.0, [1.2])])
    (case,) = cases_for(first, second)
    assert len(case.rows) == 2
    assert len(case.standings) == 1
    assert case.standings[0].repeat_spread_fraction == pytest.approx(0.2 / 1.1)
    assert case.standings[0].measured.median_seconds == pytest.approx(1.1)


def test_files_of_different_batches_are_different_cases():
    file = run_file([simple_run(1.0, [1.0])])
    assert len(cases_for(file, replace(file, global_batch_size=32))) == 2


def test_oversubscribed_runs_are_shown_but_not_judged():
    report = build([Source(name="run.json", file=run_file([simple_run(1.0, [2.0])], oversubscribed=True))])
    assert len(report.rows) == 1
    assert report.summary.num_judged == 0
    assert report.summary.median_error_fraction is None
    assert report.calibrations == ()
    assert "Not judged" in verdict(report.cases[0])[0].text
    assert "2 ranks shared 2 cores" in report.warnings[0]


def test_runs_on_a_busy_machine_are_shown_but_not_judged():
    runs = [beside(simple_run(1.0, [2.0], rank=rank), 0.97) for rank in (1, 2)]
    report = build([Source(name="run.json", file=run_file(runs))])
    assert [row.error_fraction for row in report.rows] == [-0.5, -0.5]
    assert (report.summary.num_runs, report.summary.num_judged) == (2, 0)
    assert report.summary.median_error_fraction is None
    assert report.calibrations == ()
    assert "Not judged: a busy machine" in verdict(report.cases[0])[0].text
    (warning,) = report.warnings
    assert "run.json: 2 of 2 plans ran on a busy machine (at worst 0.97 of 2 cores taken by other processes)" in warning
    row = report.to_json()["rows"][0]
    assert (row["is_judged"], row["why_not_judged"], row["load"]["other_cores"]) == (False, "a busy machine", 0.97)


def test_quiet_runs_are_judged_beside_busy_ones():
    quiet = beside(simple_run(1.0, [1.1], rank=2), 0.03)
    busy = beside(replace(simple_run(1.0, [0.5], rank=1), is_baseline=True), 0.5)
    report = build([Source(name="run.json", file=run_file([busy, quiet]))])
    (case,) = report.cases
    assert report.summary.num_judged == 1
    assert report.summary.median_error_fraction == pytest.approx(1 - 1 / 1.1)
    assert report.calibrations[0].num_runs == 1
    assert case.fastest.plan == case.chosen.plan == quiet.plan
    text = " ".join(finding.text for finding in verdict(case))
    assert "Not judged: 1 of 2 runs, a busy machine" in text
    assert "Plain data parallel was not judged" in text
    assert "1 of 2 plans ran on a busy machine" in report.warnings[0]


def test_failed_losses_are_named():
    run = simple_run(1.0, [1.0])
    check = LossCheck(status="failed", reason="step 1 differs by 3 %", tolerance_fraction=1e-3)
    (case,) = cases_for(run_file([replace(run, measurement=replace(run.measurement, loss_check=check))]))
    assert any(finding.tone == "bad" and "step 1 differs by 3 %" in finding.text for finding in verdict(case))
    assert summarise([case]).num_failed_loss_checks == 1


def test_another_machine_is_flagged():
    file = replace(demo_run_file(), machine_fingerprint="ffffffffffff")
    assert "another one" in build([Source(name="run.json", file=file)]).warnings[0]


@pytest.mark.parametrize("steps", [[], [0.0]])
def test_unusable_steps_are_an_error(steps):
    with pytest.raises(ArtifactError, match=r"run0\.json: plan 'dp2"):
        cases_for(run_file([simple_run(1.0, steps)]))


def test_no_runs_is_an_error():
    with pytest.raises(ArtifactError, match="holds no runs"):
        cases_for(run_file([]))


def test_kinds_of_plans():
    assert kind_of_plan(Plan()) == "one device"
    assert kind_of_plan(Plan(data_parallel=2)) == "data"
    assert kind_of_plan(Plan(data_parallel=2, codec="bf16")) == "data, compressed"
    assert kind_of_plan(Plan(data_parallel=2, zero_stage=1)) == "data, sharded"
    assert kind_of_plan(Plan(data_parallel=2, tensor_parallel=2)) == "data x tensor"


@given(st.sampled_from(["gpipe", "1f1b"]), st.integers(2, 5), st.integers(1, 9), st.floats(0.1, 3))
@settings(max_examples=30)
def test_bubble_of_equal_stages_is_the_textbooks(schedule, num_stages, num_microbatches, backward):
    # (p - 1) / (m + p - 1), for GPipe and 1F1B alike where messages are free.
    spans = simulate_pipeline(schedule, num_stages, num_microbatches, 1.0, backward)
    expected = (num_stages - 1) / (num_microbatches + num_stages - 1)
    assert bubble_fraction(spans) == pytest.approx(expected)
    # What follows the pipeline is no bubble.
    assert bubble_fraction(with_tail(spans, {"all_reduce": 1.0, "optimizer": 2.0})) == pytest.approx(expected)


@pytest.mark.parametrize(("schedule", "owners"), [("interleaved-1f1b", (0, 1, 0, 1)), ("zbv", (0, 1, 1, 0))])
def test_a_bubble_is_of_ranks_and_not_of_their_virtual_stages(schedule, owners):
    plan = Plan(pipeline_parallel=2, schedule=schedule, virtual_stages=2, stage_bounds=(0, 1, 2, 3))
    # Each rank works 4 of 5 seconds, each of its two stages 2 of them.
    free, spans = [0.0, 1.0], []
    for stage, rank in enumerate(owners):
        for action in "FB":
            spans.append(
                Span(stage=stage, action=action, microbatch=0, start_seconds=free[rank], stop_seconds=free[rank] + 1)
            )
            free[rank] += 1
    assert bubble_fraction(spans, plan) == pytest.approx(1 - 4 / 5)
    assert bubble_fraction(spans) == pytest.approx(1 - 2 / 5)


def test_bubble_needs_a_pipeline():
    assert bubble_fraction(()) is None
    assert bubble_fraction(simulate_pipeline("gpipe", 1, 3, 1.0, 2.0)) is None


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=8))
def test_busy_seconds_counts_each_moment_once(intervals):
    covered = {moment for start, length in intervals for moment in range(start, start + length)}
    assert busy_seconds([(start, start + length) for start, length in intervals]) == len(covered)
