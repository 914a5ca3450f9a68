"""The figures of a table of published runs: predictions against measurements, errors by family, parts of some runs."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from planner.pages.styles import PART_STYLES
from profiles.pages.figures import GRID, PLAN_MARKERS, TEXT, Style, axis, base_layout, time_unit
from profiles.units import GIB, format_bytes, format_percent, format_seconds
from reports.published.rows import PublishedRun

# Above this many runs a figure shows no mark per run where a summary says the same.
MANY: Final = 300
BAND_OPACITY: Final = 0.28
OTHER: Final = Style("other", "#9E9E9E", "x")
COLOURS: Final = (
    *(colour for colour, _ in PLAN_MARKERS), "#8C510A", "#117733", "#882255", "#44AA99", "#999933",
)  # fmt: skip
FARTHEST_PERCENT: Final = (-75.0, 150.0)


def markers(families: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and symbol of each family: both begin again after some, but not together."""
    return {
        family: (COLOURS[index % len(COLOURS)], PLAN_MARKERS[index % len(PLAN_MARKERS)][1])
        for index, family in enumerate(families)
    }


def times(runs: Sequence[PublishedRun], families: Sequence[str]) -> go.Figure:
    """Predicted against measured step time of the runs that have both, on logarithmic axes."""
    shown = [run for run in runs if run.error_fraction is not None]
    scale, unit = time_unit(float(np.median([run.measured_seconds or 0.0 for run in shown])))
    points = [
        _Point(
            run=run,
            x=(run.measured_seconds or 0.0) / scale,
            y=(run.forecast.step_seconds or 0.0) / scale,
            low=_over(run.forecast.low_seconds, scale),
            high=_over(run.forecast.high_seconds, scale),
            is_judged=run.is_judged,
            text=_hover(run, format_seconds, run.forecast.step_seconds, run.measured_seconds, run.error_fraction),
        )
        for run in shown
    ]
    title = "Predicted against measured step time"
    return _scatter(points, families, title, f"measured step time ({unit})", f"predicted step time ({unit})")


def memory(runs: Sequence[PublishedRun], families: Sequence[str]) -> go.Figure:
    """Predicted against measured peak memory of the runs that have both, on logarithmic axes."""
    points = [
        _Point(
            run=run,
            x=(run.measured_bytes or 0.0) / GIB,
            y=(run.predicted_bytes or 0.0) / GIB,
            low=None,
            high=None,
            is_judged=run.is_memory_judged,
            text=_hover(run, format_bytes, run.predicted_bytes, run.measured_bytes, run.memory_error_fraction)
            + f"<br>counter: {run.counter}",
        )
        for run in runs
        if run.memory_error_fraction is not None
    ]
    title = "Predicted against measured peak memory"
    return _scatter(points, families, title, "measured peak (GiB)", "predicted peak (GiB)")


class _Point:
    """A mark: where it stands, its band, and what it says."""

    def __init__(self, **values: Any) -> None:
        self.run: PublishedRun = values["run"]
        self.x: float = values["x"]
        self.y: float = values["y"]
        self.low: float | None = values["low"]
        self.high: float | None = values["high"]
        self.is_judged: bool = values["is_judged"]
        self.text: str = values["text"]


def _over(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def _hover(run: PublishedRun, form: Any, predicted: float | None, measured: float | None, error: float | None) -> str:
    lines = [
        f"<b>{html.escape(run.row_id)}</b>",
        html.escape(run.family),
        f"predicted {form(predicted or 0.0)}, measured {form(measured or 0.0)}",
        f"error {format_percent(error or 0.0, signed=True)}",
    ]
    return "<br>".join(lines)


def _scatter(points: Sequence[_Point], families: Sequence[str], title: str, x_title: str, y_title: str) -> go.Figure:
    figure = go.Figure()
    values = [value for point in points for value in (point.x, point.y) if value > 0]
    edges = (min(values) * 0.75, max(values) * 1.35)
    line = {"color": TEXT, "width": 1, "dash": "dash"}
    for fraction in (0.2, 0.1):
        figure.add_trace(_corridor(fraction, edges))
    figure.add_trace(
        go.Scatter(
            x=edges, y=edges, mode="lines", line=line, hoverinfo="skip", name="predicted = measured, 10 and 20 %"
        )
    )
    looks = markers(families)
    for family in families:
        own = [point for point in points if point.run.family == family]
        if own:
            _add_family(figure, family, own, looks[family])
    limits = [float(np.log10(edge)) for edge in edges]
    ticks: dict[str, Any] = {"range": limits, "type": "log", **_ticks(*edges)}
    figure.update_layout(base_layout(title, 560), xaxis=axis(x_title, **ticks), yaxis=axis(y_title, **ticks))
    return figure


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Round numbers on a logarithmic axis, written out: Plotly's own would write 50 as 5."""
    decades = math.log10(high / low)
    steps = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [step * 10.0**power for power in powers for step in steps]
    values = [value for value in values if low <= value <= high]
    return {"tickvals": values, "ticktext": [f"{value:.6g}" for value in values]}


def _corridor(fraction: float, edges: tuple[float, float]) -> go.Scatter:
    low, high = edges
    return go.Scatter(
        x=[low, high, high, low],
        y=[low * (1 + fraction), high * (1 + fraction), high * (1 - fraction), low * (1 - fraction)],
        fill="toself",
        fillcolor=GRID,
        mode="lines",
        line={"width": 0},
        opacity=0.5,
        hoverinfo="skip",
        showlegend=False,
    )


def _add_family(figure: go.Figure, family: str, points: Sequence[_Point], look: tuple[str, str]) -> None:
    """The bands of a family as one broken line, which stays light, and its marks."""
    colour, symbol = look
    with_band = [point for point in points if point.low and point.high]
    if with_band:
        figure.add_trace(
            go.Scatter(
                x=[value for point in with_band for value in (point.x, point.x, None)],
                y=[value for point in with_band for value in (point.low, point.high, None)],
                mode="lines",
                line={"color": colour, "width": 1.5},
                opacity=BAND_OPACITY,
                legendgroup=family,
                showlegend=False,
                hoverinfo="skip",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[round(point.x, 6) for point in points],
            y=[round(point.y, 6) for point in points],
            mode="markers",
            marker={
                "color": colour,
                "size": 8,
                "opacity": 0.85,
                "symbol": [symbol if point.is_judged else f"{symbol}-open" for point in points],
            },
            hovertext=[point.text for point in points],
            hoverinfo="text",
            legendgroup=family,
            name=html.escape(family),
        )
    )


def errors(runs: Sequence[PublishedRun], families: Sequence[str]) -> go.Figure:
    """Errors of the judged runs by family, as boxes; errors beyond the axis stand at its end."""
    low, high = FARTHEST_PERCENT
    looks, figure = markers(families), go.Figure()
    judged = [run for run in runs if run.is_judged]
    present = [family for family in families if any(run.family == family for run in judged)]
    for family in reversed(present):
        own = [run for run in judged if run.family == family]
        percents = [100 * (run.error_fraction or 0.0) for run in own]
        figure.add_trace(
            go.Box(
                x=[round(min(max(percent, low), high), 2) for percent in percents],
                y=[_label(family, len(own))] * len(own),
                orientation="h",
                name=html.escape(family),
                boxpoints="all" if len(judged) <= MANY else "outliers",
                jitter=0.4,
                pointpos=0,
                marker={"color": looks[family][0], "size": 4, "opacity": 0.7},
                line={"width": 1.3},
                text=[
                    f"{html.escape(run.row_id)}: {percent:+.1f} %" for run, percent in zip(own, percents, strict=True)
                ],
                hoverinfo="text",
                showlegend=False,
            )
        )
    figure.update_layout(base_layout("Error of the step time by family", 120 + 36 * len(present)))
    figure.add_vline(x=0, line={"color": TEXT, "width": 1, "dash": "dash"})
    reach = max((abs(100 * (run.error_fraction or 0.0)) for run in judged), default=10.0) * 1.1
    edges = [max(-reach, low - 5), min(reach, high + 5)]
    figure.update_xaxes(axis("predicted / measured - 1 (%)", range=edges, ticksuffix=""))
    figure.update_yaxes(axis("", showgrid=False))
    return figure


def _label(family: str, count: int) -> str:
    return f"{html.escape(family)} ({count}) "


def parts(runs: Sequence[PublishedRun]) -> go.Figure:
    """Parts of the predicted step of some runs, as shares of the measured time, or of the predicted one without it."""
    figure = go.Figure()
    ids = [run.row_id for run in runs]
    # Bars of one name would be stacked on each other.
    counts = [f" #{ids[: index + 1].count(name)}" if ids.count(name) > 1 else "" for index, name in enumerate(ids)]
    labels = [f"{html.escape(name)}{count} " for name, count in zip(ids, counts, strict=True)]
    names = list(dict.fromkeys(name for run in runs for name in run.forecast.seconds))
    known = [name for name in PART_STYLES if name in names]
    for name in known + [name for name in names if name not in PART_STYLES]:
        style = PART_STYLES.get(name, OTHER)
        shares = [100 * _part(run.forecast.seconds, name) / _whole(run) for run in runs]
        if not any(share > 0 for share in shares):
            continue
        title = style.name if name in PART_STYLES else html.escape(name)
        figure.add_trace(
            go.Bar(
                x=[round(share, 3) for share in shares],
                y=labels,
                orientation="h",
                name=title,
                marker={
                    "color": style.colour,
                    "pattern": {"shape": style.pattern, "fillmode": "overlay", "fgopacity": 0.55, "size": 7},
                },
                hovertext=[f"{label}<br>{title}: {share:.1f} %" for label, share in zip(labels, shares, strict=True)],
                hoverinfo="text",
            )
        )
    figure.update_layout(
        base_layout("Where the predicted step time goes", 170 + 34 * len(runs)), barmode="stack", bargap=0.3
    )
    figure.add_vline(x=100, line={"color": TEXT, "width": 1.5, "dash": "dash"})
    figure.update_xaxes(axis("share of the measured step time (%)", rangemode="tozero"))
    figure.update_yaxes(axis("", autorange="reversed", showgrid=False, type="category"))
    return figure


def _part(seconds: Mapping[str, float], name: str) -> float:
    value = seconds.get(name, 0.0)
    return float(value) if np.isfinite(value) else 0.0


def _whole(run: PublishedRun) -> float:
    return run.measured_seconds or run.forecast.step_seconds or 1.0
