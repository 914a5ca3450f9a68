"""Figures hold the data they are given: nothing lost, nothing added."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.pages.gantt import gantt, spans_table
from planner.parts import PART_NAMES
from planner.prediction import KINDS
from planner.timeline import bubble_fraction
from reports import frames
from reports.comparison import Source, rows_of
from reports.pages import figures
from tests.report_builders import demo_run_file, measurement, prediction, run_file, simple_run

ROWS = rows_of(Source(name="run.json", file=demo_run_file()))
GIB = 2**30


def stack_lengths(figure) -> dict[float, float]:
    """Length of each bar by its position on the axis."""
    lengths: dict[float, float] = defaultdict(float)
    for trace in figure.data:
        if trace.type == "bar":
            for position, value in zip(trace.y, trace.x, strict=True):
                lengths[position] += value
    return lengths


def test_stacked_parts_add_up_to_the_step():
    lengths = stack_lengths(figures.parts_bars(frames.parts(ROWS)))
    for index, row in enumerate(ROWS):
        assert lengths[3 * index + 1] == pytest.approx(row.predicted_seconds, rel=1e-3)
        assert lengths[3 * index + 2] == pytest.approx(row.measured_seconds, rel=1e-3)


SECONDS = st.floats(0, 5)


@given(
    st.dictionaries(st.sampled_from(PART_NAMES), SECONDS, min_size=1),
    st.dictionaries(st.sampled_from(PART_NAMES), st.none() | SECONDS),
    st.floats(0.01, 10),
)
@settings(max_examples=50)
def test_parts_conserve_seconds(predicted, measured, step):
    predicted = {**predicted, "compute": 1.0}
    run = replace(
        simple_run(1.0, [1.0]), prediction=prediction(predicted, {}), measurement=measurement([step], measured)
    )
    frame = frames.parts(rows_of(Source(name="r", file=run_file([run]))))
    totals = frame.groupby("side")["value"].sum()
    observed = sum(value or 0.0 for value in measured.values())
    assert totals["predicted"] == pytest.approx(sum(predicted.values()))
    assert totals["measured"] == pytest.approx(max(step, observed), rel=1.1e-3)
    assert (frame["value"] >= 0).all()


def test_memory_bars_show_kinds_peaks_and_limit():
    figure = figures.memory_bars(frames.memory(ROWS), limit_bytes=1.5 * GIB)
    lengths = stack_lengths(figure)
    for index, row in enumerate(ROWS):
        assert lengths[3 * index + 1] * GIB == pytest.approx(row.predicted_peak_bytes, rel=1e-3)
        assert lengths[3 * index + 2] * GIB == pytest.approx(row.measured_peak_bytes)
    assert figure.layout.shapes[0].x0 == pytest.approx(1.5)
    names = {trace.name for trace in figure.data if trace.type == "bar"}
    assert names == {figures.KIND_STYLES[kind].name for kind in (*KINDS, frames.MEASURED_PEAK)}


def test_a_distant_limit_is_named_and_does_not_squeeze_the_bars():
    figure = figures.memory_bars(frames.memory(ROWS), limit_bytes=80 * GIB)
    assert not figure.layout.shapes
    assert "limit 80 GiB" in figure.layout.title.text


def test_unobserved_memory_is_said_not_drawn():
    (row,) = rows_of(Source(name="r", file=run_file([simple_run(1.0, [1.0])])))
    figure = figures.memory_bars(frames.memory([row]))
    assert any("not observable" in text for trace in figure.data if trace.name == "total" for text in trace.text)


def test_scatter_has_every_plan_once_with_its_bars():
    figure = figures.scatter(frames.points(ROWS))
    drawn = {}
    for trace in figure.data:
        if trace.error_x.array:
            for index, text in enumerate(trace.text):
                drawn[int(text)] = (
                    trace.x[index],
                    trace.y[index],
                    trace.x[index] + trace.error_x.array[index],
                    trace.y[index] - trace.error_y.arrayminus[index],
                )
                assert "micro_batch_size = " in trace.hovertext[index]
    expected = {
        row.run.rank: (
            row.measured_seconds,
            row.predicted_seconds,
            row.measured.upper_seconds,
            row.run.prediction.low_seconds,
        )
        for row in ROWS
    }
    assert drawn.keys() == expected.keys()
    for rank, numbers in expected.items():
        assert drawn[rank] == pytest.approx(numbers)


def test_scatter_of_far_apart_times_is_logarithmic():
    runs = [simple_run(0.01, [0.01], 1), simple_run(5.0, [5.0], 2)]
    figure = figures.scatter(frames.points(rows_of(Source(name="r", file=run_file(runs)))))
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


def test_text_from_files_is_escaped_on_hover():
    run = simple_run(1.0, [1.0])
    run = replace(run, plan=replace(run.plan, codec="<b>x</b>"))
    figure = figures.scatter(frames.points(rows_of(Source(name="r", file=run_file([run])))))
    assert "<b>x" not in figure.data[-1].hovertext[0].split("<br>", 1)[1]


def test_timeline_draws_every_span_on_one_axis():
    row = next(row for row in ROWS if row.run.plan.schedule == "1f1b")
    spans = (*row.run.prediction.spans, *row.run.measurement.spans)
    frame = spans_table(row.run.prediction.spans, row.run.measurement.spans)
    bubbles = {"predicted": bubble_fraction(row.run.prediction.spans), "measured": None}
    figure = gantt(frame, "Timeline", bubbles)
    assert sum(len(trace.x) for trace in figure.data) == len(spans)
    assert sum(sum(trace.x) for trace in figure.data) == pytest.approx(
        sum(span.stop_seconds - span.start_seconds for span in spans)
    )
    assert figure.layout.xaxis.matches == "x2"
    assert list(figure.layout.xaxis.range) == list(figure.layout.xaxis2.range)
    assert f"bubble {bubbles['predicted']:.1%}".replace("%", " %") in figure.layout.annotations[0].text


def test_what_can_run_beside_compute_has_its_own_lane():
    row = ROWS[0]
    figure = gantt(spans_table(row.run.prediction.spans, ()), "Timeline", {})
    lanes = {trace.name: trace.y[0] for trace in figure.data}
    assert set(lanes) == {"forward", "backward", "communication", "codec", "optimizer"}
    assert lanes["communication"] == lanes["codec"] > lanes["forward"] == lanes["optimizer"]


def test_timeline_says_where_a_side_is_missing():
    row = next(row for row in ROWS if row.run.prediction.spans)
    figure = gantt(spans_table(row.run.prediction.spans, ()), "Timeline", {"predicted": 0.1})
    assert "no timeline recorded" in figure.layout.annotations[1].text


def test_every_figure_has_a_title_and_units():
    row = next(row for row in ROWS if row.run.prediction.spans)
    drawn = [
        figures.scatter(frames.points(ROWS)),
        figures.parts_bars(frames.parts(ROWS)),
        figures.memory_bars(frames.memory(ROWS)),
        gantt(spans_table(row.run.prediction.spans, row.run.measurement.spans), "Timeline", {}),
    ]
    for figure in drawn:
        assert figure.layout.title.text
        titles = [figure.layout[name].title.text for name in figure.layout if name.startswith("xaxis")]
        assert any(title and title.endswith(")") for title in titles)


def test_labels_are_distinct():
    rows = [*ROWS, *ROWS]
    assert len(set(frames.labels_of(rows))) == len(rows)
