"""Trainings in which something goes wrong: `python -m tests.fault_trials [--only KIND] [-o FILE]`.

Each must end with the losses of a run that nothing disturbed, to the bit, or with one sentence that is true; mostly it
is first the one and then, started again, the other. Prints a table, and writes it to tests/golden/fault_trials.csv.
Full disks are small file systems in memory where this user may mount them, else they are left out; so are hosts that
are lost where network namespaces cannot be made, and memory that runs out where cgroups cannot.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.fault_trial_forked import ALL_KINDS
from tests.fault_trial_kinds import LeftOut, Outcome, Setting
from tests.warm_ranks import servers, starting_from

GOLDEN = Path(__file__).parent / "golden" / "fault_trials.csv"
HEADINGS = ("fault", "trials", "survived", "losses identical", "true sentences", "seconds")


def main() -> None:
    """Run the trials and say what came of them; ends with 1 where one ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the name of the kinds to run; the other rows stay")
    parser.add_argument("--each", type=int, default=10**6, help="at most so many trials of a kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=GOLDEN)
    asked = parser.parse_args()
    chosen = {name: kind for name, kind in ALL_KINDS.items() if asked.only in name}
    rows, bad = [], 0
    with servers() as warm, starting_from(warm), tempfile.TemporaryDirectory(prefix="fault-trials-") as place:
        setting = Setting(Path(place), random.Random(asked.seed))
        for name, (count, trial) in chosen.items():
            row, failed = _row(name, min(count, asked.each), trial, setting)
            rows.append(row)
            bad += failed
            print(" | ".join(str(cell) for cell in row), flush=True)
    if asked.each >= max(count for count, _ in ALL_KINDS.values()):
        _write(asked.output, {row[0]: row for row in rows})
    sys.exit(1 if bad else 0)


def _write(path: Path, rows: Mapping[str | int, Sequence[str | int]]) -> None:
    """Write the rows, beside those of other kinds that are there."""
    kept: dict[str | int, Sequence[str | int]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            kept = {row[0]: row for row in csv.reader(stream)}
    found = {**kept, **rows}
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([HEADINGS, *(found[name] for name in ALL_KINDS if name in found)])


def _row(
    name: str, count: int, trial: Callable[[Setting], Outcome], setting: Setting
) -> tuple[tuple[str | int, ...], int]:
    """One kind's row, and how many of its trials ended neither way."""
    counted: Counter[str] = Counter()
    started, failed = time.monotonic(), 0
    for number in range(count):
        try:
            outcome = trial(setting)
        except LeftOut as reason:
            print(f"{name}: left out, {reason}", flush=True)
            break
        except Exception:
            failed += 1
            counted["tried"] += 1
            print(f"{name} {number}: WRONG\n{traceback.format_exc()}", flush=True)
            continue
        counted["tried"] += 1
        counted["compared"] += outcome.identical is not None
        for what in ("survived", "identical", "said"):
            counted[what] += bool(getattr(outcome, what))
        if not outcome.is_right:
            failed += 1
            print(f"{name} {number}: WRONG {outcome}", flush=True)
        elif outcome.sentence:
            print(f"{name} {number}: {outcome.sentence}", flush=True)
    seconds = round(time.monotonic() - started)
    identical = counted["identical"] if counted["compared"] else "-"
    cells = (counted["tried"], counted["survived"], identical, counted["said"], seconds)
    return (name, *cells), failed


if __name__ == "__main__":
    main()
