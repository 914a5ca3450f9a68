"""A page of a verdict and tables alone: one file that works offline, without scripts."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from reports.tables import Table


def tables_page(
    kicker: str,
    title: str,
    verdict: Sequence[tuple[str, str]],
    notes: Sequence[str],
    tables: Sequence[tuple[str, Table]],
) -> str:
    """The whole page as HTML text: toned sentences, notes, and tables under headings."""
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("tables.html").render(
        kicker=kicker, title=title, verdict=verdict, notes=notes, tables=tables
    )
    return page.lstrip()
