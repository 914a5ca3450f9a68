"""The models of the matrix on two ranks: each layout gives what the table says, and what differs or hangs is told."""

import math
from collections.abc import Mapping, Sequence

import pytest

from profiles.models.profile import WorkloadSpec
from tests.matrix.execution import COLUMNS, execute, is_equal
from tests.matrix.on_ranks import FIRST_FRACTION, LATER_FRACTION, differences, words
from tests.matrix.one_process import Steps
from tests.matrix.table import OWN, models, recorded

# Split in pairs; statistics of batches; random numbers that are drawn; nothing that repeats.
SAMPLE = {
    "qwen3": ("tensor",),
    "dropout": ("zero1", "zero3", "pipeline"),
    "lstm": ("data", "pipeline"),
    "convolutions": ("recompute",),
}
# At least, of 48 architectures and 17 modules.
LEAST = {"data": 65, "zero1": 65, "zero2": 65, "zero3": 65, "recompute": 59, "tensor": 52, "pipeline": 59}
# Sums over two ranks round otherwise: a norm is off by little more than what is allowed.
FAILS = {("detr", "tensor"), ("wav2vec2", "tensor")}
UNLIKE = "tests.unlike_modules"


def executed(columns: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {name: {} for name in columns}
    cases = [(spec, size, columns[spec.name]) for spec, size in models() if spec.name in columns]
    execute(cases, (OWN,), lambda name, column, cell: found[name].update({column: cell}))
    return found


def without_numbers(cells: dict[str, str]) -> dict[str, str]:
    """How far sums differ by their order depends on the processor."""
    return {
        column: "equal" + ", dropout off" * cell.endswith("off") if is_equal(cell) else cell
        for column, cell in cells.items()
    }


def check(columns: Mapping[str, Sequence[str]]) -> None:
    rows, found = recorded(), executed(columns)
    for name, own in columns.items():
        wanted = {column: getattr(rows[name], column) for column in own}
        assert without_numbers(found[name]) == without_numbers(wanted), (name, found[name])


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_some_models_run_as_the_table_says() -> None:
    check(SAMPLE)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_all_models_run_as_the_table_says() -> None:
    check({spec.name: COLUMNS for spec, _ in models()})


def test_the_recorded_table_has_as_many_equal_layouts_as_are_promised() -> None:
    rows = recorded().values()
    for column, least in LEAST.items():
        cells = {row.name: getattr(row, column) for row in rows}
        wrong = {(name, column) for name, cell in cells.items() if not cell.startswith(("equal", "refused"))}
        assert wrong <= FAILS
        assert sum(is_equal(cell) for cell in cells.values()) >= least, (column, cells)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_what_differs_or_ends_a_rank_is_told_and_what_follows_runs() -> None:
    names = ("scaled", "fails", "gradient_scaled", "alike")
    cases = [(WorkloadSpec(kind="module", name=name, factory=f"{UNLIKE}:{name}"), 0, ("data",)) for name in names]
    cells: dict[str, str] = {}
    execute(cases, (UNLIKE,), lambda name, _, cell: cells.update({name: cell}), patience_seconds=8.0)
    assert list(cells) == list(names)
    assert cells["scaled"].startswith("differs")
    assert "in the loss of step 1" in cells["scaled"]
    assert "in the norm of step 1" in cells["gradient_scaled"]
    assert "ValueError: not on this rank" in cells["fails"]
    assert is_equal(cells["alike"])


@pytest.mark.parametrize(
    ("loss", "norm", "said"),
    [
        ((2.0, 2.0, 2.0), (1.0, 1.0, 1.0), "equal 0e+00"),
        ((2.0, 2.0, 2.0001), (1.0, 1.0, 1.00005), "equal 5e-05"),
        ((2.0001, 2.0, 2.0), (1.0, 1.0, 1.0), "differs 5e-05 in the loss of step 1"),
        ((2.0, 2.0, 2.0), (1.00002, 1.0, 1.0), "differs 2e-05 in the norm of step 1"),
        ((2.0, 2.0, 2.0), (1.0, 1.001, 1.0), "differs 1e-03 in the norm of step 2"),
        ((2.0, math.nan, 2.0), (1.0, 1.0, 1.0), "differs inf in the loss of step 2"),
    ],
)
def test_steps_are_compared_one_by_one(loss: tuple[float, ...], norm: tuple[float, ...], said: str) -> None:
    found = differences(Steps(loss=loss, norm=norm), Steps(loss=(2.0,) * 3, norm=(1.0,) * 3))
    assert words(found, FIRST_FRACTION, LATER_FRACTION) == said
