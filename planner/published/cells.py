"""Cells of a table of runs: numbers, words and flags, what was assumed for empty ones, and why a row is refused."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

from planner.published.columns import COLUMNS, FLAGS, NUMBERS, WORDS, Flag, Number, Words, spelled

EMPTY = ("", "nan", "null", "n/a", "na", "unknown", "-", "?")
TRUE, FALSE = ("yes", "true", "1", "1.0", "y", "on"), ("no", "false", "0", "0.0", "n", "off", "none")


class Refused(Exception):
    """A row that cannot be predicted; the message is for the user."""


class Cells:
    """One row by column name, in lower case; remembers what was assumed.

    What a column is and what an empty cell stands for is in planner/published/columns; `usual` and `noted` say so where
    that depends on the rest of the row.
    """

    def __init__(self, row: Mapping[str, str | None]) -> None:
        self._cells = {
            str(name).strip().lower(): str(value).strip()
            for name, value in row.items()
            if name is not None and value is not None and not isinstance(value, list)
        }
        self.assumptions: list[str] = []
        self.guesses = 0

    def text(self, column: str) -> str | None:
        """The cell, None where it is empty."""
        value = self._cells.get(column, "")
        return None if value.lower() in EMPTY else value

    def items(self, column: str) -> tuple[str, ...]:
        """The words of a list, without those that say that there is nothing in it."""
        words = (spelled(word) for word in (self.text(column) or "").replace(",", ";").split(";"))
        return tuple(word for word in words if word not in ("", "none"))

    def assume(self, column: str, value: object) -> None:
        """Note that an empty `column` was taken for `value`."""
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        self.assumptions.append(f"{column}: {shown} assumed")

    def guess(self, column: str, note: str) -> None:
        """Note what was taken for something else than the cell says, which makes the prediction less sure."""
        self.guesses += 1
        self.assumptions.append(f"{column}: {note}")

    def size(self, column: str, usual: float | None = None, *, noted: bool | None = None) -> float:
        """A number, `usual` where the cell is empty.

        Raises: Refused for anything else, and for an empty cell where nothing is usual.
        """
        own = NUMBERS[column]
        text, usual = self.text(column), own.usual if usual is None else usual
        if text is None or text.lower() == "none":
            if usual is None:
                raise Refused(f"{column} is empty; it has no sensible default")
            if own.noted if noted is None else noted:
                self.assume(column, float(usual))
            return float(usual)
        try:
            value = float(text.replace(",", "") if text.count(",") and "." not in text else text)
        except ValueError:
            raise Refused(f"{column} is '{text}', not a number") from None
        if not math.isfinite(value) or value < own.least or value > own.most:
            raise Refused(f"{column} is {text}; it must be at least {own.least:g} and at most {own.most:g}")
        if own.whole and value != round(value):
            raise Refused(f"{column} is {text}; it must be a whole number")
        return value

    def word(self, column: str, usual: str | None = None, *, noted: bool | None = None) -> str:
        """One of the column's words, `usual` where the cell is empty.

        Raises: Refused for any other word, with the nearest.
        """
        own = WORDS[column]
        text, usual = self.text(column), own.usual if usual is None else usual
        if usual is not None and (text is None or (text.lower() == "none" and "none" not in own.known)):
            if own.noted if noted is None else noted:
                self.assume(column, usual)
            return usual
        spellings = {spelled(word): word for word in own.known}
        value = spelled(text or "")
        if value not in spellings:
            near = difflib.get_close_matches(value, spellings, n=1)
            hint = f"; did you mean '{spellings[near[0]]}'?" if near else ""
            raise Refused(f"{column} is '{text}'{hint}; known are {', '.join(own.known)}")
        return spellings[value]

    def flag(self, column: str, usual: bool | None = None, *, noted: bool | None = None) -> bool:
        """Yes or no, `usual` where the cell is empty.

        Raises: Refused for any other word.
        """
        own = FLAGS[column]
        text = self.text(column)
        if text is None:
            value = bool(own.usual if usual is None else usual)
            if own.noted if noted is None else noted:
                self.assume(column, "yes" if value else "no")
            return value
        if text.lower() in TRUE:
            return True
        if text.lower() in FALSE:
            return False
        raise Refused(f"{column} is '{text}'; it must be yes or no")

    def fields(self) -> dict[str, float | bool | str]:
        """The fields of a job that one cell says by itself.

        Raises: Refused for a cell that is none of what its column holds.
        """
        found: dict[str, float | bool | str] = {}
        for column in COLUMNS.values():
            if not column.field:
                continue
            if isinstance(column, Number):
                found[column.field] = self.size(column.name)
            elif isinstance(column, Words):
                found[column.field] = self.word(column.name)
            elif isinstance(column, Flag):
                found[column.field] = self.flag(column.name)
        return found
