"""Cells of a table of runs: numbers, words and flags, what was assumed for empty ones, and why a row is refused."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

EMPTY = ("", "nan", "null", "n/a", "na", "unknown", "-", "?")
TRUE, FALSE = ("yes", "true", "1", "1.0", "y", "on"), ("no", "false", "0", "0.0", "n", "off", "none")
LARGEST = 1e12


class Refused(Exception):
    """A row that cannot be predicted; the message is for the user."""


class Cells:
    """One row by column name, in lower case; remembers what was assumed."""

    def __init__(self, row: Mapping[str, str | None]) -> None:
        self._cells = {
            str(name).strip().lower(): str(value).strip()
            for name, value in row.items()
            if name is not None and value is not None and not isinstance(value, list)
        }
        self.assumptions: list[str] = []

    def text(self, column: str) -> str | None:
        """The cell, None where it is empty."""
        value = self._cells.get(column, "")
        return None if value.lower() in EMPTY else value

    def assume(self, column: str, value: object) -> None:
        """Note that an empty `column` was taken for `value`."""
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        self.assumptions.append(f"{column}: {shown} assumed")

    def size(
        self, column: str, default: float | None = None, *, least: float = 1.0, whole: bool = True, noted: bool = True
    ) -> float:
        """A number of at least `least`, `default` where the cell is empty.

        Raises: Refused for anything else, and for an empty cell without a default.
        """
        text = self.text(column)
        if text is None or text.lower() == "none":
            if default is None:
                raise Refused(f"{column} is empty; it has no sensible default")
            if noted:
                self.assume(column, float(default))
            return float(default)
        try:
            value = float(text.replace(",", "") if text.count(",") and "." not in text else text)
        except ValueError:
            raise Refused(f"{column} is '{text}', not a number") from None
        if not math.isfinite(value) or value < least or value > LARGEST:
            raise Refused(f"{column} is {text}; it must be at least {least:g} and at most {LARGEST:g}")
        if whole and value != round(value):
            raise Refused(f"{column} is {text}; it must be a whole number")
        return value

    def word(
        self, column: str, known: Sequence[str], default: str, *, noted: bool = True, lenient: bool = False
    ) -> str:
        """One of `known`, `default` where the cell is empty; with `lenient` also for any other word, which is noted.

        Raises: Refused for any other word, with the nearest.
        """
        text = self.text(column)
        if text is None or (text.lower() == "none" and "none" not in known):
            if noted:
                self.assume(column, default)
            return default
        spellings = {word.replace("_", "-"): word for word in known}
        value = text.lower().replace("_", "-")
        if value not in spellings and lenient:
            self.assumptions.append(f"{column}: {default or 'as usual'} assumed, '{text}' is not known")
            return default
        if value not in spellings:
            near = difflib.get_close_matches(value, spellings, n=1)
            hint = f"; did you mean '{spellings[near[0]]}'?" if near else ""
            raise Refused(f"{column} is '{text}'{hint}; known are {', '.join(known)}")
        return spellings[value]

    def flag(self, column: str, default: bool, *, noted: bool = True) -> bool:
        """Yes or no, `default` where the cell is empty.

        Raises: Refused for any other word.
        """
        text = self.text(column)
        if text is None:
            if noted:
                self.assume(column, "yes" if default else "no")
            return default
        if text.lower() in TRUE:
            return True
        if text.lower() in FALSE:
            return False
        raise Refused(f"{column} is '{text}'; it must be yes or no")
