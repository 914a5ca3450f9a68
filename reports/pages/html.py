"""The page: one file that shows the whole report offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from planner.pages.gantt import gantt, spans_table
from planner.timeline import MEASURED, PREDICTED, bubble_fraction
from profiles.pages.html import Picture, environment, json_script, picture, plotly_script
from profiles.units import format_bytes, format_count, format_percent, format_seconds
from reports import frames, tables
from reports.changes_words import findings
from reports.comparison import Row, Source, kind_of_plan
from reports.facts import load_words
from reports.pages import figures, over_time
from reports.report import Report
from reports.summary import Summary, verdict


def render(report: Report) -> str:
    """The whole page as HTML text."""
    pages = environment("reports")
    pages.filters |= {
        "seconds": format_seconds,
        "bytes": format_bytes,
        "memory": frames.byte_text,
        "percent": format_percent,
        "count": format_count,
    }
    changes, history = report.changes, report.history
    timelines = [_timeline(index, row, label) for index, row, label in _rows_with_spans(report.rows)]
    return pages.get_template("report.html").render(
        report=report,
        title=" and ".join(dict.fromkeys(source.file.model_name for source in report.sources)),
        verdicts=[(case, verdict(case)) for case in report.cases],
        tiles=tiles(report.summary),
        rows=[(row, kind_of_plan(row.run.plan), json.dumps(asdict(row.run.plan), indent=1)) for row in report.rows],
        scatter=picture("scatter", figures.scatter(frames.points(report.rows)), tables.points_table(report.rows)),
        parts=picture("parts", figures.parts_bars(frames.parts(report.rows)), tables.parts_table(report.rows)),
        memory=picture(
            "memory",
            figures.memory_bars(frames.memory(report.rows), report.limit_bytes),
            tables.memory_table(report.rows),
        ),
        timelines=timelines,
        calibrations=[
            (tables.calibration_sentence(learnt), tables.calibration_table(learnt)) for learnt in report.calibrations
        ],
        environments=[(source, environment_facts(source)) for source in report.sources],
        assumptions=frames.assumptions(report.rows),
        change_findings=() if changes is None else findings(changes),
        change_facts=None if changes is None else over_time.facts_table(changes),
        change_outcomes=None if changes is None else over_time.outcomes_table(changes),
        history=None if history is None else over_time.history_picture(history),
        data=json_script(report.to_json()),
        runs=json_script(over_time.runs_in_page(report.sources)),
        plotly=plotly_script(),
    )


def tiles(summary: Summary) -> list[tuple[str, str, str]]:
    """The key numbers: name, value, and what it means."""

    def text(value: float | None, form: str = "percent", signed: bool = False) -> str:
        if value is None:
            return "none"
        return format_percent(value, signed=signed) if form == "percent" else f"{value:.2f}{form}"

    return [
        ("median error", text(summary.median_error_fraction), "of step time, absolute"),
        ("90th percentile", text(summary.p90_error_fraction), "of the error"),
        ("bias", text(summary.bias_fraction, signed=True), "signed mean; above 0: predicted too slow"),
        ("inside the band", text(summary.inside_band_fraction), "measured in the predicted band"),
        ("noise", text(summary.median_spread_fraction), "middle half of one plan's steps / median"),
        ("rank correlation", text(summary.rank_correlation, ""), "Spearman, 1 is the right order"),
        ("regret", text(summary.top1_regret_fraction), "first choice against the fastest"),
        (
            "over data parallel",
            text(summary.measured_speedup, "x"),
            f"speed; predicted {text(summary.predicted_speedup, 'x')}",
        ),
        ("memory error", text(summary.median_memory_error_fraction), "median of peaks, absolute"),
    ]


def _rows_with_spans(rows: Sequence[Row]) -> list[tuple[int, Row, str]]:
    """Rows that have a timeline, pipelines before others, the fastest of each first."""
    labelled = [
        (index, row, label)
        for index, (row, label) in enumerate(zip(rows, frames.labels_of(rows), strict=True))
        if row.run.prediction.spans or row.run.measurement.spans
    ]
    return sorted(labelled, key=lambda item: (item[1].run.plan.pipeline_parallel == 1, item[1].measured_seconds))


def _timeline(index: int, row: Row, label: str) -> Picture:
    predicted, measured = row.run.prediction.spans, row.run.measurement.spans
    plan = row.run.plan
    bubbles = {PREDICTED: bubble_fraction(predicted, plan), MEASURED: bubble_fraction(measured, plan)}
    figure = gantt(spans_table(predicted, measured), f"Timeline of {label}", bubbles)
    return picture(f"timeline-{index}", figure, tables.timeline_table(row))


def environment_facts(source: Source) -> list[tuple[str, str]]:
    """Where and how a run took place: name and value."""
    file, environment = source.file, source.file.environment
    return [
        ("model", f"{file.model_name}, {format_count(file.num_parameters)} parameters"),
        ("batch and sequence", f"{file.global_batch_size} samples of {file.sequence_length} tokens"),
        ("machine profile", f"{file.machine_name} ({file.machine_fingerprint or 'no fingerprint'})"),
        ("device", f"{environment.num_devices} x {environment.device}"),
        ("cores", str(environment.num_cores)),
        ("more ranks than cores", "yes, timings are not judged" if environment.oversubscribed else "no"),
        ("machine before the run", load_words([environment.load_before]) or "unknown"),
        ("machine during timed steps", load_words([run.measurement.load for run in file.runs]) or "unknown"),
        ("Trainwright", environment.trainwright or "unknown"),
        ("torch, Python", f"{environment.torch}, {environment.python}"),
        ("backend", environment.backend),
        ("commit", environment.commit or "unknown"),
        ("seed", str(file.seed)),
        ("data", environment.data),
        ("fingerprint", environment.fingerprint),
        ("started", environment.started),
        ("command", environment.command),
    ]
