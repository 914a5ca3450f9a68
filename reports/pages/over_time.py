"""The page's sections on what changed between two sides, and on how errors went from run to run."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import plotly.graph_objects as go

from profiles import artifacts
from profiles.pages.figures import PLAN_MARKERS, TEXT, axis, base_layout
from profiles.pages.html import Picture, Table, picture
from profiles.units import format_bytes, format_percent, format_seconds
from reports.changes import Changes
from reports.comparison import Row, Source
from reports.facts import value_words
from reports.history import History, Moment
from reports.outcomes import Outcome, Standing

NOT_OBSERVED: Final = "not observable"
# A run whose plans no other run has is one grey cloud with all others like it.
OTHERS: Final = ("#8C8C8C", "circle")


def facts_table(changes: Changes) -> Table:
    """The facts that differ."""
    return Table(
        caption="What differs",
        header=("what", "of", "before", "after"),
        rows=tuple(
            (change.name, change.group, value_words(change.before), value_words(change.after))
            for change in changes.facts
        ),
    )


def outcomes_table(changes: Changes) -> Table:
    """Each plan of both sides: predicted and measured before and after."""
    return Table(
        caption="Plans that ran in both, before -> after; error is predicted / measured - 1",
        header=("plan", "step", "change", "predicted step", "change", "peak memory", "error", "losses"),
        rows=tuple(_outcome_cells(outcome) for outcome in changes.outcomes),
    )


def _outcome_cells(outcome: Outcome) -> tuple[str, ...]:
    sides = (outcome.before, outcome.after)
    change = format_percent(outcome.step_change_fraction, signed=True)
    spread = " beyond spread" if outcome.is_beyond_spread else ""
    same = outcome.is_time_predicted_alike
    return (
        _moved([side.label for side in sides]),
        _moved([format_seconds(side.measured_seconds) for side in sides]),
        f"{change}{spread}" if outcome.is_judged else f"{change} not judged",
        _moved([format_seconds(side.predicted_seconds) for side in sides]),
        "same" if same else format_percent(outcome.predicted_change_fraction, signed=True),
        _moved([_peak(side) for side in sides]),
        _moved([format_percent(side.error_fraction, signed=True) for side in sides]),
        _moved([", ".join(side.losses) for side in sides]),
    )


def history_picture(history: History) -> Picture:
    """The errors of all plans over the time of their runs."""
    return picture("history", history_figure(history), history_table(history))


def history_table(history: History) -> Table:
    """The numbers of the figure, a row per run."""
    marks = {mark.started: mark.words for mark in history.marks}
    return Table(
        caption="Runs in the order of time",
        header=("started", "file", "model", "plans", "median absolute error", "versions that changed"),
        rows=tuple(
            (
                moment.started.strftime("%Y-%m-%d %H:%M"),
                moment.source,
                moment.model,
                str(len(moment.rows)),
                "not judged" if moment.error_fraction is None else format_percent(moment.error_fraction),
                marks.get(moment.started, "none"),
            )
            for moment in history.moments
        ),
    )


def history_figure(history: History) -> go.Figure:
    """Errors of step times over time: a line per plan of a model, the median of each run, versions where they changed.

    Numbers of the upright lines are those of `history.marks`.
    """
    figure = go.Figure()
    series = series_of(history.moments)
    shown = [name for name, points in series.items() if len(points) > 1][: len(PLAN_MARKERS)]
    for name, marker in zip(shown, PLAN_MARKERS, strict=False):
        figure.add_trace(_series(name, series[name], marker))
    rest = [point for name, points in series.items() if name not in shown for point in points]
    if rest:
        figure.add_trace(_series("other plans" if shown else "plans", rest, OTHERS, mode="markers"))
    judged = [moment for moment in history.moments if moment.error_fraction is not None]
    figure.add_trace(
        go.Scatter(
            x=[_when(moment.started) for moment in judged],
            y=[100 * (moment.error_fraction or 0.0) for moment in judged],
            mode="lines",
            line={"color": TEXT, "width": 2, "dash": "dash"},
            name="median of a run, absolute",
            hoverinfo="skip",
        )
    )
    for number, mark in enumerate(history.marks, start=1):
        when = _when(mark.started)
        line = {"color": TEXT, "width": 1, "dash": "dot"}
        figure.add_shape(type="line", x0=when, x1=when, y0=0, y1=1, yref="paper", line=line)
        figure.add_annotation(
            x=when, y=0, yref="paper", yanchor="bottom", xanchor="left", text=str(number), showarrow=False
        )
    figure.add_hline(y=0, line={"color": TEXT, "width": 1})
    figure.update_layout(
        base_layout("Errors of predicted step times over time", 440),
        xaxis=axis("start of the run (UTC)", type="date"),
        yaxis=axis("predicted / measured - 1 (%)"),
    )
    return figure


def series_of(moments: Sequence[Moment]) -> dict[str, list[tuple[Moment, Row]]]:
    """Points by plan, those of most runs first; the model is named where there are several."""
    models = {moment.model for moment in moments}
    found: dict[str, list[tuple[Moment, Row]]] = {}
    for moment in moments:
        for row in moment.rows:
            name = f"{moment.model}: {row.plan_id}" if len(models) > 1 else row.plan_id
            found.setdefault(name, []).append((moment, row))
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _series(
    name: str, points: Sequence[tuple[Moment, Row]], marker: tuple[str, str], mode: str = "lines+markers"
) -> go.Scatter:
    colour, symbol = marker
    return go.Scatter(
        x=[_when(moment.started) for moment, _ in points],
        y=[100 * row.error_fraction for _, row in points],
        mode=mode,
        line={"color": colour, "width": 1},
        marker={
            "color": colour,
            "symbol": [symbol if row.is_judged else f"{symbol}-open" for _, row in points],
            "size": 9 if mode != "markers" else 6,
        },
        hovertext=[_hover(moment, row) for moment, row in points],
        hoverinfo="text",
        name=html.escape(name),
    )


def _hover(moment: Moment, row: Row) -> str:
    numbers = f"predicted {format_seconds(row.predicted_seconds)}, measured {format_seconds(row.measured_seconds)}"
    versions = ", ".join(f"{name} {value}" for name, value in moment.versions.items())
    error = f"error {format_percent(row.error_fraction, signed=True)}{'' if row.is_judged else ', not judged'}"
    lines = (row.plan_id, f"{moment.model}, {moment.source}", f"{numbers}, {error}", versions)
    return "<br>".join(html.escape(line) for line in lines)


def _when(time: datetime) -> str:
    """A time as Plotly takes it: in UTC, without saying so."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat()


def runs_in_page(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The run files in JSON types, without timelines: what a later `compare` reads of the page."""
    return [
        {"name": source.name, "file": json.loads(artifacts.dump("run", replace(source.file, runs=_bare(source))))}
        for source in sources
    ]


def _bare(source: Source) -> tuple[Any, ...]:
    return tuple(
        replace(run, prediction=replace(run.prediction, spans=()), measurement=replace(run.measurement, spans=()))
        for run in source.file.runs
    )


def _peak(standing: Standing) -> str:
    measured = standing.measured_peak_bytes
    return NOT_OBSERVED if measured is None else format_bytes(measured)


def _moved(texts: Sequence[str]) -> str:
    return " -> ".join(dict.fromkeys(texts))
