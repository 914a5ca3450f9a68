"""A page of a verdict and tables alone: one file that works offline, without scripts."""

from __future__ import annotations

from collections.abc import Sequence

from profiles.pages.html import Table, environment


def tables_page(
    kicker: str,
    title: str,
    verdict: Sequence[tuple[str, str]],
    notes: Sequence[str],
    tables: Sequence[tuple[str, Table]],
) -> str:
    """The whole page as HTML text: toned sentences, notes, and tables under headings."""
    page = (
        environment()
        .get_template("tables.html")
        .render(kicker=kicker, title=title, verdict=verdict, notes=notes, tables=tables)
    )
    return page.lstrip()
