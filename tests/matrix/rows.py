"""Tables of models: a row for each name, as it was recorded, and written anew."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_rows(table: Path, kind: Callable[..., T]) -> dict[str, T]:
    """The rows of a table by name; none where it is not there."""
    if not table.exists():
        return {}
    with table.open() as file:
        return {row["name"]: kind(**row) for row in csv.DictReader(file)}


def write_rows(table: Path, kind: type[Any], rows: Iterable[Any]) -> None:
    """Write a table of rows, each of a dataclass."""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))
