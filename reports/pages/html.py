"""The page: one file that shows the whole report offline, with Plotly embedded once and figures as JSON.

The page's policy forbids every outside load. All text is escaped by Jinja2; JSON is made safe to stand in a script.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from profiles.machines.load import MachineLoad, busiest, causes
from profiles.units import format_bytes, format_count, format_percent, format_seconds
from reports import frames, tables
from reports.comparison import Row, Source, kind_of_plan
from reports.pages import figures
from reports.pages.gantt import gantt
from reports.report import Report
from reports.summary import Summary, verdict
from reports.tables import Table
from reports.timeline import bubble_fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure of the page, its heading, and its table."""

    key: str
    title: str
    figure_json: Markup
    height: int
    table: Table


def render(report: Report) -> str:
    """The whole page as HTML text."""
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "seconds": format_seconds,
        "bytes": format_bytes,
        "memory": frames.byte_text,
        "percent": format_percent,
        "count": format_count,
    }
    timelines = [_timeline(index, row, label) for index, row, label in _rows_with_spans(report.rows)]
    return environment.get_template("report.html").render(
        report=report,
        title=" and ".join(dict.fromkeys(source.file.model_name for source in report.sources)),
        verdicts=[(case, verdict(case)) for case in report.cases],
        tiles=tiles(report.summary),
        rows=[
            (row, kind_of_plan(row.run.plan), _script_free_json(asdict(row.run.plan), indent=1)) for row in report.rows
        ],
        scatter=_picture("scatter", figures.scatter(frames.points(report.rows)), tables.points_table(report.rows)),
        parts=_picture("parts", figures.parts_bars(frames.parts(report.rows)), tables.parts_table(report.rows)),
        memory=_picture(
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
        data=Markup(_script_free_json(report.to_json())),
        plotly=Markup(get_plotlyjs()),
    )


def tiles(summary: Summary) -> list[tuple[str, str, str]]:
    """The key numbers: name, value, and what it means."""

    def text(value: float | None, form: str = "percent", signed: bool = False) -> str:
        if value is None:
            return "none"
        return format_percent(value, signed=signed) if form == "percent" else f"{value:.2f}{form}"

    return [
        ("median error", text(summary.median_error_fraction), "of step time, without sign"),
        ("90th percentile", text(summary.p90_error_fraction), "of the error"),
        ("bias", text(summary.bias_fraction, signed=True), "mean error; above 0: predicted too slow"),
        ("inside the band", text(summary.inside_band_fraction), "measured in the predicted band"),
        ("noise", text(summary.median_spread_fraction), "middle half of one plan's steps / median"),
        ("rank correlation", text(summary.rank_correlation, ""), "Spearman, 1 is the right order"),
        ("regret", text(summary.top1_regret_fraction), "first choice against the fastest"),
        (
            "over data parallel",
            text(summary.measured_speedup, "x"),
            f"speed; predicted {text(summary.predicted_speedup, 'x')}",
        ),
        ("memory error", text(summary.median_memory_error_fraction), "median of peaks, without sign"),
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
    bubbles = {frames.PREDICTED: bubble_fraction(predicted), frames.MEASURED: bubble_fraction(measured)}
    figure = gantt(frames.spans(predicted, measured), f"Timeline of {label}", bubbles)
    return _picture(f"timeline-{index}", figure, tables.timeline_table(row))


def _picture(key: str, figure: go.Figure, table: Table) -> Picture:
    # The heading stands in the page, where it wraps on narrow screens.
    title, height = str(figure.layout.title.text), int(figure.layout.height)
    figure.update_layout(title_text=None, margin_t=figure.layout.margin.t - 28)
    return Picture(key=key, title=title, figure_json=_safe(figure.to_json()), height=height, table=table)


def _script_free_json(value: Any, indent: int | None = None) -> str:
    return str(_safe(json.dumps(value, allow_nan=False))) if indent is None else json.dumps(value, indent=indent)


def _safe(text: str) -> Markup:
    # A browser ends a script at the first "</", wherever it stands; in JSON these characters can be written as escapes.
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


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
        ("machine before the run", _load_words([environment.load_before])),
        ("machine during timed steps", _load_words([run.measurement.load for run in file.runs])),
        ("torch, Python", f"{environment.torch}, {environment.python}"),
        ("backend", environment.backend),
        ("commit", environment.commit or "unknown"),
        ("seed", str(file.seed)),
        ("data", environment.data),
        ("fingerprint", environment.fingerprint),
        ("started", environment.started),
        ("command", environment.command),
    ]


def _load_words(loads: Sequence[MachineLoad | None]) -> str:
    """What else the machine did, at its busiest."""
    worst = busiest(loads)
    return "unknown" if worst is None else causes(worst) or "quiet"
