"""`python -m tests.matrix`: try every model of the matrix in every way, and write the table beside the recorded ones.

Models that are named, or all; rows of others stay as they are. Run by `make matrix`; takes half an hour.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

from profiles.models.profile import WorkloadSpec
from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.user_modules import MODULES
from tests.matrix.ways import Row, tried

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
    if not TABLE.exists():
        return {}
    with TABLE.open() as file:
        return {row["name"]: Row(**row) for row in csv.DictReader(file)}


def write(rows: dict[str, Row]) -> None:
    """Write the table, its rows in the order of the matrix."""
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(rows[spec.name]) for spec, _ in models() if spec.name in rows)


def main(names: list[str]) -> int:
    """Try the models, write each row as it comes, and count those that are refused."""
    rows = recorded()
    for spec, size in models():
        if names and spec.name not in names:
            continue
        rows[spec.name] = tried(spec, size, (OWN,))
        print(*asdict(rows[spec.name]).values(), sep="  ", flush=True)
        write(rows)
    refused = [row.name for row in rows.values() if row.refused]
    print(f"{len(rows)} models, {len(refused)} refused: {', '.join(refused) or 'none'}")
    return int(any("Error" in row.refused for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
