"""The figures of the report: tables of reports.frames in, Plotly figures out."""

from __future__ import annotations

import html
from typing import Final

import numpy as np
import pandas
import plotly.graph_objects as go

from planner.pages.styles import KIND_STYLES, PART_STYLES
from planner.timeline import MEASURED, PREDICTED
from profiles.pages.figures import PLAN_MARKERS, TEXT, Style, axis, base_layout, byte_unit, stacked_bar, time_unit

BANDS: Final = (0.20, 0.10, 0.05)
# Neighbouring ranks often lie close together; their numbers are put on different sides.
LABEL_PLACES: Final = ("bottom left", "top right", "bottom right", "top left")


def scatter(points: pandas.DataFrame) -> go.Figure:
    """Predicted against measured step time, with the line of equality and bands of 5, 10 and 20 %."""
    columns = ["predicted_seconds", "low_seconds", "high_seconds", "measured_seconds"]
    largest = float(points[columns].to_numpy().max())
    smallest = float(points[columns].to_numpy().min())
    scale, unit = time_unit(largest)
    is_log = smallest > 0 and largest / smallest > 8
    edges = (smallest * 0.9 / scale, largest * 1.1 / scale)
    figure = go.Figure()
    for band in BANDS:
        figure.add_trace(_band(band, edges))
    line = {"color": TEXT, "width": 1, "dash": "dash"}
    figure.add_trace(
        go.Scatter(
            x=edges,
            y=edges,
            mode="lines",
            line=line,
            name="predicted = measured, bands of 5, 10 and 20 %",
            hoverinfo="skip",
        )
    )
    for index, (kind, group) in enumerate(points.groupby("kind", sort=False)):
        figure.add_trace(_cloud(str(kind), group, scale, PLAN_MARKERS[index % len(PLAN_MARKERS)]))
    limits = [float(np.log10(edge)) for edge in edges] if is_log else list(edges)
    options = {"range": limits, "type": "log" if is_log else "linear"}
    figure.update_layout(
        base_layout("Predicted against measured step time", 520),
        xaxis=axis(f"measured step time ({unit})", **options),
        yaxis=axis(f"predicted step time ({unit})", **options),
    )
    return figure


def _band(fraction: float, edges: tuple[float, float]) -> go.Scatter:
    start, stop = edges
    return go.Scatter(
        x=[start, stop, stop, start],
        y=[start * (1 + fraction), stop * (1 + fraction), stop * (1 - fraction), start * (1 - fraction)],
        fill="toself",
        fillcolor="rgba(128,128,128,0.13)",
        line={"width": 0},
        mode="lines",
        name=f"within {fraction:.0%}".replace("%", " %"),
        hoverinfo="skip",
        showlegend=False,
    )


def _cloud(kind: str, group: pandas.DataFrame, scale: float, marker: tuple[str, str]) -> go.Scatter:
    colour, symbol = marker
    x, y = group["measured_seconds"] / scale, group["predicted_seconds"] / scale
    bar = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": colour}
    return go.Scatter(
        x=x.tolist(),
        y=y.tolist(),
        error_x={
            **bar,
            "array": (group["upper_seconds"] / scale - x).tolist(),
            "arrayminus": (x - group["lower_seconds"] / scale).tolist(),
        },
        error_y={
            **bar,
            "array": (group["high_seconds"] / scale - y).clip(lower=0).tolist(),
            "arrayminus": (y - group["low_seconds"] / scale).clip(lower=0).tolist(),
        },
        mode="markers+text",
        text=[f" {rank} " for rank in group["rank"]],
        textposition=[LABEL_PLACES[rank % len(LABEL_PLACES)] for rank in group["rank"]],
        marker={
            "color": colour,
            "symbol": [symbol if judged else f"{symbol}-open" for judged in group["is_judged"]],
            "size": 10,
        },
        hovertext=[
            f"<b>{html.escape(label)}</b><br>" + "<br>".join(html.escape(line) for line in lines)
            for label, lines in zip(group["label"], group["details"], strict=True)
        ],
        hoverinfo="text",
        name=kind,
    )


def parts_bars(parts: pandas.DataFrame) -> go.Figure:
    """Step time by part, predicted above measured for each plan."""
    scale, unit = time_unit(_largest_total(parts))
    return _paired_stacks(parts, PART_STYLES, scale, unit, "Where the step time goes", f"step time ({unit})")


def memory_bars(memory: pandas.DataFrame, limit_bytes: float | None = None) -> go.Figure:
    """Predicted memory of the fullest rank by kind above the measured peak, and the limit of a rank where known."""
    scale, unit = byte_unit(_largest_total(memory))
    figure = _paired_stacks(memory, KIND_STYLES, scale, unit, "Memory of the fullest rank", f"peak memory ({unit})")
    # A limit far beyond every bar would squeeze them all; it is named in the title instead.
    if limit_bytes is not None and limit_bytes <= 3 * _largest_total(memory):
        figure.add_vline(x=limit_bytes / scale, line={"color": "#D55E00", "width": 2, "dash": "dash"})
        figure.update_xaxes(range=[0, 1.2 * max(limit_bytes, _largest_total(memory)) / scale])
    if limit_bytes is not None:
        figure.update_layout(title_text=f"Memory of the fullest rank (limit {limit_bytes / scale:.3g} {unit})")
    return figure


def _largest_total(stacks: pandas.DataFrame) -> float:
    return float(stacks.groupby(["label", "side"])["value"].sum().max())


def _paired_stacks(
    stacks: pandas.DataFrame, styles: dict[str, Style], scale: float, unit: str, title: str, axis_title: str
) -> go.Figure:
    labels = list(dict.fromkeys(stacks["label"]))
    # Three rows per plan: its name, the predicted bar, the measured bar.
    position = {
        (label, side): 3 * index + offset
        for index, label in enumerate(labels)
        for offset, side in ((1, PREDICTED), (2, MEASURED))
    }
    figure = go.Figure()
    for layer, style in styles.items():
        group = stacks[(stacks["layer"] == layer) & (stacks["value"] > 0)]
        if group.empty:
            continue
        values = (group["value"] / scale).tolist()
        places = [position[key] for key in zip(group["label"], group["side"], strict=True)]
        hovers = [
            f"{html.escape(label)}, {side}<br>{style.name}: {value:.4g} {unit}"
            for label, side, value in zip(group["label"], group["side"], values, strict=True)
        ]
        figure.add_trace(stacked_bar(style, values, places, hovers, width=0.86))
    totals = stacks.groupby(["label", "side"])["value"].sum() / scale
    figure.add_trace(_totals(totals, position, unit))
    for index, label in enumerate(labels):
        figure.add_annotation(
            text=html.escape(label), x=0, y=3 * index + 0.1, xanchor="left", showarrow=False, font={"size": 12}
        )
    figure.update_layout(base_layout(title, 150 + 62 * len(labels)), barmode="stack")
    figure.update_xaxes(axis(axis_title, range=[0, 1.2 * float(totals.max())]))
    ticks = {"tickvals": list(position.values()), "ticktext": [f"{side} " for _, side in position]}
    figure.update_yaxes(axis("", range=[3 * len(labels) - 0.4, -0.5], showgrid=False, **ticks))
    return figure


def _totals(totals: pandas.Series, position: dict[tuple[str, str], int], unit: str) -> go.Scatter:
    return go.Scatter(
        x=totals.tolist(),
        y=[position[key] for key in totals.index],
        text=[f" {total:.3g} {unit}" if total else " not observable" for total in totals],
        mode="text",
        cliponaxis=False,
        textposition="middle right",
        showlegend=False,
        hoverinfo="skip",
        name="total",
    )
