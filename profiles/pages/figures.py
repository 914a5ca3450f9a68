"""What all figures share: colours, axes, units, a layout that reads on light and on dark paper.

Colours are Okabe and Ito's, told apart by colour-blind readers, and stand on light and dark paper; backgrounds are
transparent and text is mid-grey, which the page replaces by its own colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import plotly.graph_objects as go

from profiles.units import GIB, KIB, MIB

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TEXT: Final = "#737373"
GRID: Final = "rgba(128,128,128,0.25)"


class Style(NamedTuple):
    """Name in words, fill colour and pattern of one layer of a stack."""

    name: str
    colour: str
    pattern: str = ""


PLAN_MARKERS: Final = (
    ("#0072B2", "circle"),
    ("#D55E00", "square"),
    ("#009E73", "diamond"),
    ("#CC79A7", "triangle-up"),
    ("#E69F00", "cross"),
    ("#56B4E9", "x"),
    ("#7B4FA3", "star"),
)


def time_unit(largest_seconds: float) -> tuple[float, str]:
    """Seconds per unit and the unit's name, so that the largest value reads well."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if largest_seconds >= scale:
            return scale, unit
    return 1e-9, "ns"


def byte_unit(largest_bytes: float) -> tuple[float, str]:
    """Bytes per unit and the unit's name, so that the largest value reads well."""
    for scale, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if largest_bytes >= scale:
            return scale, unit
    return 1.0, "B"


def money_unit(largest_dollars: float) -> tuple[float, str]:
    """Dollars per unit and the word before `dollars`, so that the largest amount reads well."""
    # Up to ten thousand, thousands read as well as dollars do.
    for least, scale, word in ((1e9, 1e9, "billion "), (1e6, 1e6, "million "), (1e4, 1e3, "thousand ")):
        if largest_dollars >= least:
            return scale, word
    return 1.0, ""


def base_layout(title: str, height: int) -> dict[str, object]:
    """The layout that all figures share."""
    return {
        "title": {"text": title, "x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 15}},
        "template": "none",
        "height": height,
        "font": {"family": FONT, "size": 12, "color": TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 10, "r": 28, "t": 64, "b": 10},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": TEXT},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        "hoverlabel": {"align": "left"},
    }


def axis(title: str, **options: object) -> dict[str, object]:
    """An axis with its title and unit."""
    shared = {"title": {"text": title}, "gridcolor": GRID, "zeroline": False, "automargin": True, "ticks": ""}
    return {**shared, **options}


def stacked_bar(
    style: Style, values: Sequence[float], places: Sequence[float], hovers: Sequence[str], width: float = 0.95
) -> go.Bar:
    """One layer of stacked bars that lie: its values, where each bar is, and what is said of it."""
    return go.Bar(
        x=values,
        y=places,
        orientation="h",
        width=width,
        name=style.name,
        marker={
            "color": style.colour,
            "pattern": {"shape": style.pattern, "fillmode": "overlay", "fgopacity": 0.55, "size": 7},
        },
        hovertext=hovers,
        hoverinfo="text",
    )
