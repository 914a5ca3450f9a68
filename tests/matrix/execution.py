"""The models of the matrix in every layout on two ranks, which are started again behind a case that ends them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeAlias

from profiles.errors import TrainwrightError
from profiles.models.profile import WorkloadSpec
from profiles.ranks.launcher import launch
from profiles.ranks.rank import Report
from tests.matrix.on_ranks import LAYOUTS, said_of

NUM_RANKS = 2
COLUMNS = tuple(LAYOUTS)
# How long a rank waits for the other before the case has failed.
PATIENCE_SECONDS = 90.0
# A model, the size of its samples, and the columns to try.
Case: TypeAlias = tuple[WorkloadSpec, int, Sequence[str]]
# Told as each case ends: model, column, and what came of it.
Told: TypeAlias = Callable[[str, str, str], None]


def is_equal(cell: str) -> bool:
    """Whether a layout has the losses and norms of one process."""
    return cell.startswith("equal")


def execute(
    cases: Iterable[Case], trusted: Sequence[str], told: Told, patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Run models in the layouts of their columns, with one start of two ranks, and one more for each that ends them."""
    left = {(spec.name, column): (spec, size) for spec, size, columns in cases for column in columns}
    while left:
        begun: list[tuple[str, str]] = []
        payload = {"cases": _cases(left), "trusted": list(trusted), "patience_seconds": patience_seconds}

        def note(report: Report, begun: list[tuple[str, str]] = begun) -> None:
            case = (report.values["name"], report.values["column"])
            if not report.values["cell"]:
                begun.append(case)
            elif left.pop(case, None):
                told(*case, report.values["cell"])

        try:
            launch("tests.matrix.on_ranks:train", payload, NUM_RANKS, "cpu", on_report=note)
        except TrainwrightError as error:
            if not begun or left.pop(begun[-1], None) is None:
                raise
            told(*begun[-1], said_of(error))


def _cases(left: Mapping[tuple[str, str], tuple[WorkloadSpec, int]]) -> list[tuple[object, int, list[str]]]:
    """What is left, by model."""
    cases: dict[str, tuple[object, int, list[str]]] = {}
    for (name, column), (spec, size) in left.items():
        cases.setdefault(name, (asdict(spec), size, []))[2].append(column)
    return list(cases.values())
