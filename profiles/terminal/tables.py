"""Tables that keep every word whole, however narrow the terminal is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE_GAP, NARROW_GAP = 2, 1


def plain_table(title: str | None = None) -> Table:
    """An empty table without lines; `print_table` prints it."""
    from rich.table import Table

    return Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")


def print_table(table: Table, out: Console, named_by: int = 0) -> None:
    """Print a table; headers wrap at their spaces, and so do cells, but for those of columns that may not wrap.

    Where even the longest words, and the least widths of columns, do not fit side by side, each row is a paragraph,
    named by its cells up to the column `named_by`.
    """
    from rich.measure import Measurement

    least, most = [], []
    for column in table.columns:
        header, *cells = (Measurement.get(out, out.options, cell) for cell in (column.header, *column.cells))
        most.append(max(size.maximum for size in (header, *cells)))
        words = max((cell.maximum if column.no_wrap else cell.minimum for cell in cells), default=0)
        words = max(header.minimum, words, min(column.min_width or 0, most[-1]))
        # One endless word must not take the table from all others: it is folded.
        least.append(min(words, out.width // 2))
    num_gaps = len(least) - 1
    table.collapse_padding = sum(least) + WIDE_GAP * num_gaps > out.width
    room = out.width - (NARROW_GAP if table.collapse_padding else WIDE_GAP) * num_gaps
    if sum(least) > room:
        _print_paragraphs(table, out, named_by)
        return
    for column, width in zip(table.columns, _shared(room, least, most), strict=True):
        column.width, column.no_wrap, column.overflow = width, False, "fold"
    out.print(table)


def _shared(room: int, least: list[int], most: list[int]) -> list[int]:
    """Widths that fill `room` as far as columns need it: each at least its `least`, the rest in equal shares."""
    widths, spare = list(least), room - sum(least)
    wanting = sorted(range(len(least)), key=lambda index: most[index] - least[index])
    for place, index in enumerate(wanting):
        share = min(most[index] - least[index], spare // (len(wanting) - place))
        widths[index] += share
        spare -= share
    return widths


def _print_paragraphs(table: Table, out: Console, named_by: int) -> None:
    """Each row as a paragraph: its name, and under it the other cells, each behind its column's header."""
    from rich.padding import Padding

    if table.title:
        out.print(table.title)
    headers = [" ".join(str(column.header).split()) for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        texts = [" ".join(str(cell).split()) for cell in cells]
        out.print("  ".join(text for text in texts[: named_by + 1] if text), style="bold")
        rest = list(zip(headers, texts, strict=True))[named_by + 1 :]
        words = ", ".join(f"{name}: {text}" for name, text in rest if text)
        out.print(Padding(words, (0, 0, 0, WIDE_GAP)))
