"""Figures of a purchase: speed and efficiency by the number of devices, money against days."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, Final

import plotly.graph_objects as go

from planner.answers import Cost
from planner.pages.purchase.points import Kind, front, kinds, perfect, planned, priced, rate, rate_band
from planner.purchase.answer import PurchaseAnswer, Row
from planner.terminal.show_purchase import TIMES, money, unit_of
from profiles.pages.figures import PLAN_MARKERS, TEXT, axis, base_layout, money_unit
from profiles.units import format_count, format_percent, rate_of, three_digits

FRONT: Final = "no row beats these"
PERFECT: Final = "perfect scaling"
# Beyond so many, rows are not written beside their marks.
MOST_LABELS: Final = 24
# Two numbers of devices that lie closer than this would be written into each other.
LEAST_STEP: Final = 1.35
PLACES: Final = ("top center", "bottom center")


def scaling(answer: PurchaseAnswer) -> go.Figure:
    """What is done per second against the number of devices, with its band and what perfect scaling would give."""
    counted = rate_of(0.0, answer.sequence_length, answer.size_unit)[0]
    figure = go.Figure()
    shown = kinds(answer)
    for kind in shown:
        figure.add_trace(_band(answer, kind))
    for kind in shown:
        figure.add_trace(_perfect_line(answer, kind))
        figure.add_trace(
            _line(kind, [rate(answer, row) for row in kind.rows], [_said(answer, row) for row in kind.rows])
        )
    # One name for all dotted lines.
    figure.add_trace(go.Scatter(x=[None], y=[None], mode="lines", name=PERFECT, line={"color": TEXT, "dash": "dot"}))
    figure.update_layout(base_layout("Speed by the number of devices", 440), hovermode="closest")
    ends = [value for row in planned(answer) for value in rate_band(answer, row)]
    ends += [value for kind in shown for value in perfect(answer, kind)]
    figure.update_xaxes(_counts_axis(answer))
    figure.update_yaxes(axis(counted, type="log", **log_ticks(min(ends), max(ends))))
    return figure


def efficiency(answer: PurchaseAnswer) -> go.Figure:
    """What one device does, over what it does with the fewest of its kind, against the number of devices."""
    figure = go.Figure()
    shares = [row.efficiency_fraction or 0.0 for row in planned(answer)]
    for kind in kinds(answer):
        own = [100 * (row.efficiency_fraction or 0.0) for row in kind.rows]
        figure.add_trace(_line(kind, own, [_said(answer, row) for row in kind.rows]))
    figure.update_layout(base_layout("Efficiency by the number of devices", 380), hovermode="closest", showlegend=True)
    figure.add_hline(y=100, line={"color": TEXT, "width": 1.5, "dash": "dot"})
    figure.update_xaxes(_counts_axis(answer))
    # From nothing on: what is lost is seen against the whole.
    figure.update_yaxes(axis("speed per device (%)", range=[0, 108 * max(1.0, *shares)]))
    return figure


def speeds(answer: PurchaseAnswer) -> go.Figure:
    """What each kind does per second, as bars, where there is one number of devices."""
    counted = rate_of(0.0, answer.sequence_length, answer.size_unit)[0]
    rows = planned(answer)
    figure = go.Figure()
    for index, row in enumerate(rows):
        low, high = rate_band(answer, row)
        own = rate(answer, row)
        figure.add_trace(
            go.Bar(
                x=[own],
                y=[2 * index + 1],
                orientation="h",
                width=0.95,
                marker={"color": PLAN_MARKERS[index % len(PLAN_MARKERS)][0]},
                error_x={"array": [high - own], "arrayminus": [own - low], "color": TEXT, "thickness": 1.5},
                hovertext=_said(answer, row),
                hoverinfo="text",
                name=html.escape(row.title),
            )
        )
        figure.add_annotation(text=html.escape(f"{row.rank}. {row.title}: {format_count(own)}"), x=0,
                              y=2 * index + 0.25, xanchor="left", showarrow=False)  # fmt: skip
    figure.update_layout(base_layout("Speed side by side", 90 + 50 * len(rows)), showlegend=False)
    figure.update_xaxes(axis(counted, rangemode="tozero"))
    figure.update_yaxes(axis("", range=[2 * len(rows) - 0.2, -0.3], visible=False))
    return figure


def bill(answer: PurchaseAnswer) -> go.Figure:
    """Money against days of every row whose price is known, with the front that no row beats and the deadline."""
    rows = list(priced(answer))
    time, over_days = unit_of(TIMES, [cost.days for _, cost, _ in rows])
    over, name = money_unit(max(cost.dollars[1] for _, cost, _ in rows if cost.dollars))
    labelled = {row.rank for row, _, _ in rows} if len(rows) <= MOST_LABELS else set(front(answer))
    by_rank = {row.rank: (cost.days * over_days, dollars / over) for row, cost, dollars in rows}
    figure = go.Figure()
    points = [by_rank[rank] for rank in front(answer)]
    figure.add_trace(
        go.Scatter(
            x=[days for days, _ in points], y=[dollars for _, dollars in points], mode="lines", name=FRONT,
            line={"color": TEXT, "width": 2, "shape": "hv"}, hoverinfo="skip",
        )
    )  # fmt: skip
    for kind in kinds(answer, with_spot=True):
        own = [each for each in rows if each[0] in kind.rows]
        if own:
            figure.add_trace(_marks(answer, kind, own, over_days, over, labelled))
    figure.update_layout(base_layout("Money against time", 480), hovermode="closest", showlegend=True)
    ends = [days * over_days for _, cost, _ in rows for days in (cost.low_days, cost.high_days)]
    if answer.deadline_days is not None:
        _draw_deadline(figure, answer.deadline_days * over_days)
        ends.append(answer.deadline_days * over_days)
    figure.update_xaxes(axis(time, type="log", **log_ticks(min(ends), max(ends))))
    # From nothing on: a difference far inside the band is not drawn as a cliff.
    figure.update_yaxes(axis(f"money ({name}dollars)", rangemode="tozero"))
    return figure


def _marks(
    answer: PurchaseAnswer,
    kind: Kind,
    own: Sequence[tuple[Row, Cost, float]],
    over_days: float,
    over: float,
    labelled: set[int],
) -> go.Scatter:
    """The rows of a kind as marks; spot devices are open ones. Bars are the band of days and the range of money."""
    colour, symbol = _marker(kind)
    thin = {"thickness": 1, "width": 2, "color": faint(colour, 0.5)}
    spans = [cost.dollars or (0.0, 0.0) for _, cost, _ in own]
    return go.Scatter(
        x=[cost.days * over_days for _, cost, _ in own],
        y=[dollars / over for _, _, dollars in own],
        error_x={
            "array": [(cost.high_days - cost.days) * over_days for _, cost, _ in own],
            "arrayminus": [(cost.days - cost.low_days) * over_days for _, cost, _ in own],
            **thin,
        },
        error_y={"array": [(high - low) / 2 / over for low, high in spans], **thin},
        mode="markers+text",
        text=[str(row.num_devices) if row.rank in labelled else "" for row, _, _ in own],
        textposition=PLACES[kind.number % 2],
        textfont={"size": 11},
        marker={"color": colour, "symbol": f"{symbol}-open" if kind.is_spot else symbol, "size": 10},
        customdata=[row.rank for row, _, _ in own],
        hovertext=[_said(answer, row) for row, _, _ in own],
        hoverinfo="text",
        cliponaxis=False,
        name=html.escape(kind.title),
    )


def _draw_deadline(figure: go.Figure, days: float) -> None:
    figure.add_shape(type="line", x0=days, x1=days, y0=0, y1=1, yref="paper",
                     line={"color": TEXT, "width": 1.5, "dash": "dash"})  # fmt: skip
    # On such an axis a line stands at the number, and words at its logarithm.
    figure.add_annotation(x=math.log10(days), y=1, yref="paper", text="deadline ", showarrow=False, xanchor="right",
                          yanchor="top", font={"size": 11})  # fmt: skip


def _line(kind: Kind, values: Sequence[float], said: Sequence[str]) -> go.Scatter:
    colour, symbol = _marker(kind)
    return go.Scatter(
        x=[row.num_devices for row in kind.rows], y=list(values), mode="lines+markers", name=html.escape(kind.title),
        legendgroup=str(kind.number), line={"color": colour, "width": 2}, marker={"symbol": symbol, "size": 9},
        hovertext=list(said), hoverinfo="text", customdata=[row.rank for row in kind.rows],
    )  # fmt: skip


def _perfect_line(answer: PurchaseAnswer, kind: Kind) -> go.Scatter:
    return go.Scatter(
        x=[row.num_devices for row in kind.rows], y=perfect(answer, kind), mode="lines", showlegend=False,
        legendgroup=str(kind.number), line={"color": _marker(kind)[0], "width": 1.5, "dash": "dot"}, hoverinfo="skip",
        name=PERFECT,
    )  # fmt: skip


def _band(answer: PurchaseAnswer, kind: Kind) -> go.Scatter:
    """The band of a kind's rates as an area, there along the lowest and back along the highest."""
    counts = [row.num_devices for row in kind.rows]
    bands = [rate_band(answer, row) for row in kind.rows]
    return go.Scatter(
        x=counts + counts[::-1], y=[low for low, _ in bands] + [high for _, high in bands[::-1]], mode="lines",
        fill="toself", fillcolor=faint(_marker(kind)[0], 0.14), line={"width": 0}, hoverinfo="skip",
        showlegend=False, legendgroup=str(kind.number), name=f"band of {html.escape(kind.title)}",
    )  # fmt: skip


def _said(answer: PurchaseAnswer, row: Row) -> str:
    """What a mark says where it is pointed at."""
    counted, own = rate_of(row.tokens_per_second or 0.0, answer.sequence_length, answer.size_unit)
    lines = [
        f"<b>{row.rank}. {html.escape(row.title)}</b>",
        html.escape(row.plan),
        f"{format_count(own)} {counted}, {format_percent(row.efficiency_fraction or 0.0)} per device",
    ]
    if row.cost is not None and answer.is_budget:
        span = f"{three_digits(row.cost.low_days)} to {three_digits(row.cost.high_days)}"
        lines.append(f"{three_digits(row.cost.days)} days ({span})")
    if row.cost is not None and row.cost.dollars is not None:
        lines.append(money(*row.cost.dollars))
    return "<br>".join(lines)


def _marker(kind: Kind) -> tuple[str, str]:
    return PLAN_MARKERS[kind.number % len(PLAN_MARKERS)]


def _counts_axis(answer: PurchaseAnswer) -> dict[str, Any]:
    """The axis of the number of devices, with those that were asked about as far as they can be read."""
    ticks: list[int] = []
    for count in sorted({row.num_devices for row in planned(answer)}):
        if not ticks or count >= LEAST_STEP * ticks[-1]:
            ticks.append(count)
    return axis("devices", type="log", tickvals=ticks, ticktext=[str(count) for count in ticks], tickangle=0)


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """The ticks of a logarithmic axis: 1, 2 and 5 of each power of ten within a range, and the range a little wider."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    room = 0.04 * max(math.log10(high / low), 0.5)
    return {
        "tickvals": values,
        "ticktext": [format_count(value) for value in values],
        "range": [math.log10(low) - room, math.log10(high) + room],
    }


def faint(colour: str, opacity: float) -> str:
    """A colour, #rrggbb, that lets through what is behind it."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
