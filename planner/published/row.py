"""One row of a table of runs as text: what it says, what was filled, and its words put as ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from planner.published.cells import EMPTY, TRUE, Refused
from planner.published.columns import COLUMNS, Number, Words, spelled

# "H100 SXM (500 W)": what the card is limited to, in its name.
POWER = re.compile(r"[\s,;@(_-]*\b(\d{2,4}) ?w(?:atts?)?\b\)?", re.IGNORECASE)


class Row:
    """Cells of one row by column name in lower case, and notes of what was filled."""

    def __init__(self, row: Mapping[str, str | None]) -> None:
        self.cells: dict[str, str] = {
            name.strip().lower(): value.strip()
            for name, value in row.items()
            if isinstance(name, str) and isinstance(value, str)
        }
        self.notes: list[str] = []
        self.guesses = 0

    def is_empty(self, column: str) -> bool:
        """Whether the cell says nothing."""
        return self.cells.get(column, "").lower() in EMPTY

    def word(self, column: str) -> str:
        """The cell in lower case, "" where it is empty."""
        return "" if self.is_empty(column) else self.cells[column].lower()

    def number(self, column: str) -> float | None:
        """The cell as a number, None where it is empty or none: whoever reads the column refuses what is wrong."""
        try:
            value = float(self.cells.get(column, ""))
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    def assume(self, column: str, value: float | str, why: str = "") -> None:
        """Fill an empty column, and note it."""
        self.set(column, value)
        self.notes.append(f"{column}: {self.cells[column]} assumed" + (f" ({why})" if why else ""))

    def compute(self, column: str, value: float, how: str) -> None:
        """Fill an empty column with what others say exactly, and note how."""
        self.set(column, value)
        self.notes.append(f"{column}: {self.cells[column]} computed ({how})")

    def guess(self, column: str, value: str, note: str) -> None:
        """Put `value` for a cell that says something else, which makes the prediction less sure, and note it."""
        self.set(column, value)
        self.guesses += 1
        self.notes.append(f"{column}: {note}")

    def set(self, column: str, value: float | str) -> None:
        """Put a value in place of the cell."""
        self.cells[column] = value if isinstance(value, str) else f"{value:.12g}"


def tidy(row: Row) -> None:
    """Put words by the names that they have here, and empty cells for sizes that do not exist.

    Raises: Refused for words that nothing stands for.
    """
    for column in COLUMNS.values():
        if row.is_empty(column.name):
            continue
        if isinstance(column, Number) and column.zero_is_empty and row.number(column.name) == 0:
            row.set(column.name, "")
        elif isinstance(column, Words):
            _name(row, column)
    _read_offload(row)
    _read_power(row)


def _name(row: Row, column: Words) -> None:
    text = row.cells[column.name]
    word = spelled(column.same.get(spelled(text), text))
    known = {spelled(each): each for each in column.known}
    if word in column.refused:
        raise Refused(f"{column.name} is '{text}': {column.refused[word]}")
    if word in known:
        row.set(column.name, known[word])
    elif word in column.near:
        near = column.near[word]
        row.guess(column.name, near, f"{near} assumed for '{text}', which cannot be priced itself")
    elif column.lenient:
        row.guess(column.name, "", f"{column.usual or 'as usual'} assumed, '{text}' is not known")


def _read_offload(row: Row) -> None:
    if row.word("parameter_offload") in TRUE and row.word("optimizer_offload") not in TRUE:
        row.set("optimizer_offload", "yes")
        row.guess("parameter_offload", "yes", "priced as optimizer_offload, with the weights on the device")


def _read_power(row: Row) -> None:
    """Take the watts out of the name of the card."""
    found = POWER.search(row.cells.get("gpu_type", ""))
    if found:
        row.set("gpu_type", POWER.sub("", row.cells["gpu_type"]).strip())
        if row.is_empty("board_power_watts"):
            row.compute("board_power_watts", float(found.group(1)), "from gpu_type")
