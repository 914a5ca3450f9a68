"""The table of the matrix as it is recorded, and the models that have a row in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from profiles.models.profile import WorkloadSpec
from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.rows import read_rows, write_rows
from tests.matrix.user_modules import MODULES
from tests.matrix.ways import Row

TABLE = Path(__file__).parent.parent / "golden" / "matrix.csv"
OWN = "tests.matrix.user_modules"


def models() -> Iterator[tuple[WorkloadSpec, int]]:
    """All models of the matrix, and the size of the samples that each is tried with."""
    for model in ARCHITECTURES:
        yield model.spec, model.size
    for factory in MODULES:
        name = factory.__name__
        yield WorkloadSpec(kind="module", name=name, factory=f"{OWN}:{name}"), 0


def recorded() -> dict[str, Row]:
    """The rows of the table as it is."""
    return read_rows(TABLE, Row)


def write(rows: dict[str, Row]) -> None:
    """Write the table, its rows in the order of the matrix."""
    write_rows(TABLE, Row, (rows[spec.name] for spec, _ in models() if spec.name in rows))
