"""Each row's best plan, a bar per row: where its step goes, and what its fullest device holds."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Final

import plotly.graph_objects as go

from planner.pages.purchase.points import planned
from planner.pages.styles import KIND_STYLES, PART_STYLES
from planner.purchase.answer import PurchaseAnswer, Row
from profiles.pages.figures import TEXT, Style, axis, base_layout, byte_unit, stacked_bar
from profiles.pages.html import Table
from profiles.units import format_bytes, format_percent, format_seconds

# A share of the longest bar that is drawn as nothing.
LEAST: Final = 1e-3


def has_parts(answer: PurchaseAnswer) -> bool:
    """Whether the parts of steps are known."""
    return any(answer.best(row.rank).prediction.seconds for row in planned(answer))


def has_kinds(answer: PurchaseAnswer) -> bool:
    """Whether it is known what memory holds."""
    return any(answer.best(row.rank).prediction.bytes_per_rank for row in planned(answer))


def parts(answer: PurchaseAnswer) -> go.Figure:
    """Shares of the step by part: what grows as devices are added is what scaling is lost to."""
    values = {
        row.rank: {
            part: 100 * seconds / (row.step_seconds or 1.0)
            for part, seconds in answer.best(row.rank).prediction.seconds.items()
        }
        for row in planned(answer)
    }
    figure = _stacked(answer, PART_STYLES, values, lambda row, share: f"{share:.1f} % of {_step(row)}")
    figure.update_layout(title_text="Where the steps go")
    figure.update_xaxes(axis("% of the step", rangemode="tozero"))
    return figure


def memory(answer: PurchaseAnswer) -> go.Figure:
    """Bytes of the fullest device by kind, with a line at what a device has."""
    rows = planned(answer)
    over, unit = byte_unit(max(row.memory_bytes or row.peak_bytes or 0.0 for row in rows))
    values = {
        row.rank: {
            kind: held / over for kind, held in answer.best(row.rank).prediction.bytes_per_rank.items()
        }
        for row in rows
    }  # fmt: skip
    figure = _stacked(answer, KIND_STYLES, values, lambda _, held: format_bytes(held * over))
    for index, row in enumerate(rows):
        if row.memory_bytes is not None:
            has = row.memory_bytes / over
            figure.add_shape(type="line", x0=has, x1=has, y0=2 * index + 0.4, y1=2 * index + 1.6,
                             line={"color": TEXT, "width": 2.5})  # fmt: skip
    figure.update_layout(title_text="Memory of the fullest device")
    most = max(max(row.memory_bytes or 0.0, row.peak_bytes or 0.0) for row in rows)
    figure.update_xaxes(axis(f"memory ({unit})", range=[0, 1.04 * most / over]))
    return figure


def _stacked(
    answer: PurchaseAnswer,
    styles: Mapping[str, Style],
    values: Mapping[int, Mapping[str, float]],
    said: Callable[[Row, float], str],
) -> go.Figure:
    """A bar per row, of what its parts are, with the row's name above it."""
    rows = planned(answer)
    longest = max(sum(parts.values()) for parts in values.values())
    figure = go.Figure()
    for name, style in styles.items():
        own = [values[row.rank].get(name, 0.0) for row in rows]
        # What is left of a step may be slightly below nothing.
        if max(own) > LEAST * longest:
            hovers = [
                f"{html.escape(row.title)}<br>{style.name}: {said(row, value)}"
                for row, value in zip(rows, own, strict=True)
            ]
            figure.add_trace(stacked_bar(style, own, [2 * index + 1 for index in range(len(rows))], hovers))
    for index, row in enumerate(rows):
        figure.add_annotation(text=html.escape(f"{row.rank}. {row.title}"), x=0, y=2 * index + 0.25, xanchor="left",
                              showarrow=False)  # fmt: skip
    figure.update_layout(base_layout("", 130 + 46 * len(rows)), barmode="stack", showlegend=True)
    figure.update_yaxes(axis("", range=[2 * len(rows) - 0.2, -0.3], visible=False))
    return figure


def parts_table(answer: PurchaseAnswer) -> Table:
    """Seconds of each row's step by part."""
    seconds = {row.rank: answer.best(row.rank).prediction.seconds for row in planned(answer)}
    names = [name for name in PART_STYLES if any(own.get(name) for own in seconds.values())]
    return Table(
        caption="Seconds of the best plan's step by part, and their sum",
        header=("devices", *(PART_STYLES[name].name for name in names), "step"),
        rows=tuple(
            (row.title, *(format_seconds(seconds[row.rank].get(name, 0.0)) for name in names), _step(row))
            for row in planned(answer)
        ),
    )


def memory_table(answer: PurchaseAnswer) -> Table:
    """Bytes of each row's fullest device by kind."""
    held = {row.rank: answer.best(row.rank).prediction.bytes_per_rank for row in planned(answer)}
    names = [name for name in KIND_STYLES if any(own.get(name) for own in held.values())]
    return Table(
        caption="Bytes of the fullest device by kind, their peak, and what a device has for plans",
        header=("devices", *(KIND_STYLES[name].name for name in names), "peak", "of", "share"),
        rows=tuple(
            (
                row.title,
                *(format_bytes(held[row.rank].get(name, 0.0)) for name in names),
                format_bytes(row.peak_bytes or 0.0),
                *(
                    ("unknown", "")
                    if row.memory_bytes is None
                    else (format_bytes(row.memory_bytes), format_percent((row.peak_bytes or 0.0) / row.memory_bytes))
                ),
            )
            for row in planned(answer)
        ),
    )


def _step(row: Row) -> str:
    return format_seconds(row.step_seconds or 0.0)
