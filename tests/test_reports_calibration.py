"""Calibration on runs whose true factors are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.plans import Plan
from reports.calibration import CALIBRATED_PARTS, calibrate
from reports.comparison import Row, Source, rows_of
from tests.report_builders import measurement, prediction, run_file, simple_run

SHARES = st.lists(st.floats(0.1, 10), min_size=3, max_size=6)


def rows_for(parts: list[dict[str, float]], factors: dict[str, float], oversubscribed: bool = False) -> list[Row]:
    """Runs with predicted `parts` that really took `factors` times as long, part by part."""
    runs = []
    for rank, seconds in enumerate(parts, start=1):
        measured = {part: value * factors.get(part, 1.0) for part, value in seconds.items()}
        runs.append(
            replace(
                simple_run(1.0, [1.0], rank, Plan(micro_batch_size=rank)),
                prediction=prediction(seconds, {}),
                measurement=measurement([sum(measured.values())] * 3, dict(measured)),
            )
        )
    return list(rows_of(Source(name="run.json", file=run_file(runs, oversubscribed))))


@given(SHARES, st.floats(0.5, 2.0))
@settings(max_examples=30)
def test_a_common_factor_is_found_and_removes_the_error(values, factor):
    learnt = calibrate("box", rows_for([{"compute": value} for value in values], {"compute": factor}))
    assert learnt.step_factor == pytest.approx(factor)
    assert learnt.error_fraction_before == pytest.approx(abs(1 / factor - 1))
    assert learnt.error_fraction_after_step_factor == pytest.approx(0, abs=1e-9)
    assert learnt.error_fraction_after_part_factors == pytest.approx(0, abs=1e-9)


def test_part_factors_separate_what_one_factor_cannot():
    parts = [{"compute": 1.0, "data_comm": 1.0}, {"compute": 4.0, "data_comm": 1.0}, {"compute": 1.0, "data_comm": 4.0}]
    learnt = calibrate("box", rows_for(parts, {"compute": 0.8, "data_comm": 1.5}))
    factors = {correction.part: correction.factor for correction in learnt.parts}
    assert factors == pytest.approx({"compute": 0.8, "data_comm": 1.5})
    assert learnt.error_fraction_after_part_factors == pytest.approx(0, abs=1e-9)
    assert learnt.error_fraction_after_step_factor > 0.05
    assert learnt.is_helpful


def test_unobserved_recomputation_is_compared_within_compute():
    # Predicted 2 + 1 seconds; measured compute holds both, 3.6 seconds, because recomputation runs inside it.
    run = replace(
        simple_run(1.0, [1.0]),
        prediction=prediction({"compute": 2.0, "recompute": 1.0}, {}),
        measurement=measurement([3.6], {"compute": 3.6}),
    )
    rows = rows_of(Source(name="r", file=run_file([run, replace(run, rank=2)])))
    assert rows[0].part_difference_seconds("compute") == pytest.approx(-0.6)
    learnt = calibrate("box", rows)
    assert learnt.parts[0].factor == pytest.approx(1.2)
    assert learnt.error_fraction_after_part_factors == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("true_factor", "bounded"), [(5.0, 2.0), (0.1, 0.5)])
def test_factors_are_bounded(true_factor, bounded):
    learnt = calibrate("box", rows_for([{"codec": 1.0}] * 2, {"codec": true_factor}))
    assert learnt.parts[0].factor == bounded
    assert learnt.parts[0].is_clipped
    assert learnt.step_factor == bounded


def test_median_of_ratios_by_hand():
    rows = [row for true in (1.1, 1.3, 1.9) for row in rows_for([{"optimizer": 1.0}], {"optimizer": true})]
    learnt = calibrate("box", rows)
    (correction,) = learnt.parts
    assert correction.factor == pytest.approx(1.3)
    assert correction.spread_fraction == pytest.approx((1.6 - 1.2) / 1.3)
    # Left out: 1.1 corrected by (1.3 + 1.9) / 2 = 1.6; 1.3 by 1.5; 1.9 by 1.2.
    errors = sorted([1.6 / 1.1 - 1, 1.5 / 1.3 - 1, 1 - 1.2 / 1.9])
    assert learnt.error_fraction_after_step_factor == pytest.approx(errors[1])


def test_unobserved_and_negligible_parts_teach_nothing():
    rows = rows_for([{"compute": 1.0, "optimizer": 1e-4}], {"optimizer": 1.9})
    learnt = calibrate("box", rows)
    assert [correction.part for correction in learnt.parts] == ["compute"]
    assert calibrate("box", rows_of(Source(name="r", file=run_file([simple_run(1.0, [1.2])])))).parts == ()


def test_one_run_has_no_left_out_error_and_unjudged_runs_teach_nothing():
    learnt = calibrate("box", rows_for([{"compute": 1.0}], {"compute": 1.2}))
    assert learnt.error_fraction_after_step_factor is None
    assert not learnt.is_helpful
    assert calibrate("box", rows_for([{"compute": 1.0}], {}, oversubscribed=True)) is None


def test_calibrated_parts_are_the_physical_ones():
    assert "bubble" not in CALIBRATED_PARTS
    assert "host" not in CALIBRATED_PARTS
