"""All plans of a page: time against memory with the front that no plan beats, and their choices side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import plotly.graph_objects as go

from planner.pages.plan_rows import AXES, filters
from profiles.pages.figures import GRID, PLAN_MARKERS, TEXT, axis, base_layout, byte_unit, time_unit
from profiles.units import format_bytes, format_percent, format_seconds

FRONT: Final = "no plan beats these"
BEST, FRONT_LINE, OTHERS = "#D55E00", "#0072B2", "rgba(128,128,128,0.45)"
# Ranks that are written beside their marks; of marks nearer to each other than this share of both axes the best alone.
MOST_LABELS: Final = 10
NEAR: Final = 0.05
# Below and left of plans that none beats there are none.
PLACE: Final = "bottom left"


class Column(NamedTuple):
    """One choice of all plans: its title, the height of each plan's line there from 0 to 1, and what stands where."""

    title: str
    places: list[float]
    ticks: dict[float, str]


def kind_of(row: dict[str, Any]) -> str:
    """Which axes a plan splits, in words."""
    names = [name for name in AXES if name != "data" and row[name] > 1]
    return " + ".join(names) if names else "data alone" if row["data"] > 1 else "one device"


def scatter(rows: Sequence[dict[str, Any]], memory_bytes: float | None = None) -> go.Figure:
    """Step time over peak memory of every plan; each mark's customdata is the plan's place in `rows`."""
    scale, unit = time_unit(max(row["step_seconds"] for row in rows))
    figure = go.Figure()
    over, bytes_unit = memory_scale(rows)
    figure.add_trace(_front(rows, scale))
    labelled = _labelled(rows)
    kinds = list(dict.fromkeys(kind_of(row) for row in rows))
    for number, kind in enumerate(kinds):
        own = [index for index, row in enumerate(rows) if kind_of(row) == kind]
        figure.add_trace(_cloud(rows, own, kind, PLAN_MARKERS[number % len(PLAN_MARKERS)], scale, labelled))
    figure.update_layout(base_layout("Time against memory of all plans", 480))
    figure.update_layout(hovermode="closest", margin_b=40)
    figure.update_xaxes(axis(f"peak memory of the fullest rank ({bytes_unit})"))
    figure.update_yaxes(axis(f"step time ({unit})"))
    if memory_bytes is not None and is_near(rows, memory_bytes):
        figure.add_vline(x=memory_bytes / over, line={"color": TEXT, "width": 1.5, "dash": "dash"})
        figure.add_annotation(x=memory_bytes / over, y=1, yref="paper", text="device ", showarrow=False,
                              xanchor="right", yanchor="top", font={"size": 11})  # fmt: skip
    return figure


def _labelled(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Places of the plans whose ranks are written: the best ones, none so near to a better one that they mix."""
    spans = {
        key: (max(row[key] for row in rows) - min(row[key] for row in rows)) or 1.0
        for key in ("peak_bytes", "step_seconds")
    }
    chosen: list[int] = []
    for index, row in enumerate(rows):
        apart = (any(abs(row[key] - rows[other][key]) > NEAR * span for key, span in spans.items()) for other in chosen)
        if row["in_table"] and not row["folded_into"] and all(apart):
            chosen.append(index)
    return chosen[:MOST_LABELS]


def memory_scale(rows: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """Bytes of the unit in which the memory of all plans reads well, and its name."""
    return byte_unit(max(row["peak_bytes"] for row in rows))


def is_near(rows: Sequence[dict[str, Any]], memory_bytes: float) -> bool:
    """Whether what a device has can be drawn beside what plans take, and squeezes them not."""
    held = [float(row["peak_bytes"]) for row in rows]
    return memory_bytes - max(held) <= max(max(held) - min(held), 0.2 * max(held))


def _front(rows: Sequence[dict[str, Any]], scale: float) -> go.Scatter:
    front = sorted((row["peak_bytes"], row["step_seconds"]) for row in rows if row["on_front"])
    return go.Scatter(
        x=[held / memory_scale(rows)[0] for held, _ in front],
        y=[seconds / scale for _, seconds in front],
        mode="lines",
        line={"color": FRONT_LINE, "width": 2, "shape": "hv"},
        name=FRONT,
        hoverinfo="skip",
    )


def _cloud(
    rows: Sequence[dict[str, Any]],
    own: Sequence[int],
    kind: str,
    marker: tuple[str, str],
    scale: float,
    labelled: Sequence[int],
) -> go.Scatter:
    colour, symbol = marker
    return go.Scatter(
        x=[rows[index]["peak_bytes"] / memory_scale(rows)[0] for index in own],
        y=[rows[index]["step_seconds"] / scale for index in own],
        mode="markers+text",
        text=[f" {rows[index]['rank']} " if index in labelled else "" for index in own],
        textposition=PLACE,
        textfont={"size": 11},
        marker={
            "color": colour,
            "symbol": [symbol if rows[index]["in_table"] else f"{symbol}-open" for index in own],
            "size": [11 if rows[index]["in_table"] and not rows[index]["folded_into"] else 8 for index in own],
            "opacity": [1.0 if rows[index]["in_table"] else 0.75 for index in own],
        },
        customdata=list(own),
        hovertext=[_hover(rows[index]) for index in own],
        hoverinfo="text",
        cliponaxis=False,
        name=kind,
    )


def _hover(row: dict[str, Any]) -> str:
    lines = [
        f"<b>{row['rank']}. {html.escape(row['id'])}</b>",
        f"{format_seconds(row['step_seconds'])} a step, {format_bytes(row['peak_bytes'])}, {_mfu(row)}",
        f"band {format_seconds(row['low_seconds'])} to {format_seconds(row['high_seconds'])}",
        *_wrapped(html.escape(row["why"])),
    ]
    if not row["in_table"]:
        lines.append("beside the table")
    return "<br>".join(lines)


def _mfu(row: dict[str, Any]) -> str:
    return f"MFU {format_percent(row['mfu'])}"


def _wrapped(text: str, width: int = 60) -> list[str]:
    """Lines of a hover, which no browser wraps."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def parallel(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Every plan as a line through its choices, its memory and its time; one trace per plan, which filters hide."""
    columns = _columns(rows)
    figure = go.Figure()
    # Lines that matter are drawn last.
    for index in sorted(range(len(rows)), key=lambda index: (rows[index]["on_front"], -index)):
        figure.add_trace(_line(rows[index], index, columns))
    figure.update_layout(base_layout("Choices of all plans, side by side", 420))
    figure.update_layout(showlegend=False, hovermode="closest", margin={"t": 112, "l": 20, "r": 50})
    for place, column in enumerate(columns):
        figure.add_annotation(x=place, y=1, yref="paper", text=html.escape(column.title), showarrow=False, yshift=4,
                              xanchor="left", yanchor="bottom", textangle=-30, font={"size": 12})  # fmt: skip
        for share, text in column.ticks.items():
            figure.add_annotation(x=place, y=share, text=html.escape(text), showarrow=False, xanchor="left",
                                  xshift=2, yshift=8, font={"size": 11})  # fmt: skip
    figure.update_xaxes(axis("", range=[-0.2, len(columns) - 0.5], tickvals=list(range(len(columns))),
                             showticklabels=False, gridcolor=GRID, fixedrange=True))  # fmt: skip
    figure.update_yaxes(axis("", range=[-0.03, 1.09], visible=False, fixedrange=True))
    return figure


def _columns(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """What plans differ in, then their memory and their time."""
    columns = []
    for name, title, values in filters(rows):
        places = {value: index / (len(values) - 1) for index, value in enumerate(values)}
        ticks = {place: str(value) for value, place in places.items()}
        columns.append(Column(title, [places[row[name]] for row in rows], ticks))
    scale, unit = time_unit(max(row["step_seconds"] for row in rows))
    bytes_over, bytes_unit = memory_scale(rows)
    for title, key, over in (
        (f"memory ({bytes_unit})", "peak_bytes", bytes_over),
        (f"step ({unit})", "step_seconds", scale),
    ):
        low, high = (pick(row[key] for row in rows) for pick in (min, max))
        span = (high - low) or 1.0
        ticks = {share: f"{(low + share * span) / over:.3g}" for share in (0.0, 0.5, 1.0)}
        columns.append(Column(title, [(row[key] - low) / span for row in rows], ticks))
    return columns


def _line(row: dict[str, Any], index: int, columns: Sequence[Column]) -> go.Scatter:
    is_best = index == 0
    colour = BEST if is_best else FRONT_LINE if row["on_front"] else OTHERS
    return go.Scatter(
        x=list(range(len(columns))),
        y=[column.places[index] for column in columns],
        mode="lines",
        line={"color": colour, "width": 3.5 if is_best else 2 if row["on_front"] else 1},
        hovertext=_hover(row),
        hoverinfo="text",
        name=str(row["rank"]),
        meta=index,
    )
