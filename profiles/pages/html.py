"""What pages of all commands share: their templates, tables, figures as JSON, and Plotly, embedded once.

A page's policy forbids every outside load. All text is escaped by Jinja2; JSON is made safe to stand in a script.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHARED = "profiles.pages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A caption, the names of the columns, and rows of text; the first column is the row's name."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure of the page, its heading, and its table."""

    key: str
    title: str
    figure_json: Markup
    height: int
    table: Table


def environment(package: str = SHARED) -> Environment:
    """The templates of `package`, which may extend, include and import those that all pages share."""
    packages = dict.fromkeys((package, SHARED))
    return Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def plotly_script() -> Markup:
    """Plotly itself, as a page without a network needs it."""
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


def picture(key: str, figure: go.Figure, table: Table) -> Picture:
    """A figure of the page, taken from a Plotly figure with a title and a height."""
    # The heading stands in the page, where it wraps on narrow screens.
    title, height = str(figure.layout.title.text), int(figure.layout.height)
    figure.update_layout(title_text=None, margin_t=figure.layout.margin.t - 28)
    return Picture(key=key, title=title, figure_json=script_safe(str(figure.to_json())), height=height, table=table)


def json_script(value: Any) -> Markup:
    """A value as JSON that can stand in a script element."""
    return script_safe(json.dumps(value, allow_nan=False))


def script_safe(text: str) -> Markup:
    """JSON text that can stand in a script element."""
    # A browser ends a script at the first "</", wherever it stands; in JSON these characters can be written as escapes.
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
