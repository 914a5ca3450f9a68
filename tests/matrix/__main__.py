"""`python -m tests.matrix`: try every model of the matrix in every way, and write the table beside the recorded ones.

Models that are named, or all; rows of others stay as they are. `--only profile`, `--only execution`, or one column of
the latter, does a part. Run by `make matrix`; takes an hour.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict, replace

from tests.matrix.execution import COLUMNS, execute
from tests.matrix.table import OWN, models, recorded, write
from tests.matrix.ways import Row, tried

PARTS = {"all": COLUMNS, "profile": (), "execution": COLUMNS} | {column: (column,) for column in COLUMNS}


def main(arguments: list[str]) -> int:
    """Try the models, write each row as it comes, and count what they can and what is refused."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("names", nargs="*", help="models, of those in the table; all where none is named")
    parser.add_argument("--only", choices=PARTS, default="all", help="what is tried")
    asked = parser.parse_args(arguments)
    rows = recorded()
    chosen = [(spec, size) for spec, size in models() if not asked.names or spec.name in asked.names]
    if asked.only in ("all", "profile"):
        for spec, size in chosen:
            row = tried(spec, size, (OWN,))
            print(*asdict(row).values(), sep="  ", flush=True)
            before = asdict(rows.get(spec.name, row))
            rows[spec.name] = replace(row, **{column: before[column] for column in COLUMNS})
            write(rows)

    def told(name: str, column: str, cell: str) -> None:
        print(name, column, cell, sep="  ", flush=True)
        rows[name] = replace(rows.get(name, Row(name=name)), **{column: cell})
        write(rows)

    execute([(spec, size, PARTS[asked.only]) for spec, size in chosen], (OWN,), told)
    return counted(rows)


def counted(rows: dict[str, Row]) -> int:
    """Print how many models are profiled, and executed in each layout; whether anything ended in an error."""
    refused = [row.name for row in rows.values() if row.refused]
    print(f"{len(rows)} models, {len(refused)} refused: {', '.join(refused) or 'none'}")
    failed = any("Error" in row.refused for row in rows.values())
    for column in COLUMNS:
        cells = {row.name: str(getattr(row, column)) for row in rows.values()}
        kinds = Counter(cell.split()[0].rstrip(":") if cell else "not tried" for cell in cells.values())
        wrong = {name: cell for name, cell in cells.items() if cell.startswith(("differs", "failed"))}
        print(f"{column}: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
        print(*(f"    {name}: {cell}" for name, cell in wrong.items()), sep="\n", end="\n" if wrong else "")
        failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
