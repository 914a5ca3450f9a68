"""Every case of the trial: one sentence, the right exit code, nothing left behind, in bounded time and memory."""

import zlib
from pathlib import Path

import pytest

from tests.trial import (
    clusters,
    configs,
    factories,
    options_execute,
    options_plan,
    outputs,
    own_files,
    own_numbers,
    surroundings,
    tables,
)
from tests.trial.case import Case
from tests.trial.runner import check

FAMILIES = {
    "configurations": configs.CASES,
    "own files": own_files.CASES,
    "own numbers": own_numbers.CASES,
    "clusters": clusters.CASES,
    "tables": tables.CASES,
    "options of plan": options_plan.CASES,
    "options of execute and profile": options_execute.CASES,
    "factories": factories.CASES,
    "outputs": outputs.CASES,
    "surroundings": surroundings.CASES,
}
CASES = [case for cases in FAMILIES.values() for case in cases]


# Of all cases so many are tried at once, drawn by their names; `make test-all` tries them all.
ONE_IN = 6


def marks(case: Case) -> list[pytest.MarkDecorator]:
    is_slow = case.slow or zlib.crc32(case.name.encode()) % ONE_IN
    slow = [pytest.mark.slow] if is_slow else []
    return [*slow, pytest.mark.xfail(reason=case.beyond_us, strict=True)] if case.beyond_us else slow


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks(case)) for case in CASES])
def test_a_bad_input_is_one_sentence(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
