"""Runs a case and holds it against what must come of it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.trial.alone import run_alone
from tests.trial.case import Case
from tests.trial.here import run_here
from tests.trial.invariants import complaints


def check(case: Case, folder: Path) -> None:
    """Run a case in an empty folder and hold it against what must come of it."""
    with contextlib.ExitStack() as kept:
        for name, content in case.files.items():
            _make(folder / name, content, kept)
        before = _names(folder)
        outcome = run_alone(case, folder) if case.alone else run_here(case, folder)
        # A sentence is as long as it is in a folder of a short name.
        outcome = replace(outcome, err=outcome.err.replace(str(folder), "/here"))
        wrong = complaints(case, outcome, before, _names(folder))
        said = f"{outcome.out[-500:]}\n{outcome.err[-1500:]}"
        assert not wrong, f"{case.command} {' '.join(case.arguments)[:300]}\n{'; '.join(wrong)}\n{said}"
        if case.after is not None:
            case.after(folder, outcome)


def _make(path: Path, content: Any, kept: contextlib.ExitStack) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif (made := content(path)) is not None and hasattr(made, "close"):
        kept.enter_context(contextlib.closing(made))


def _names(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and (path.is_symlink() or not path.is_dir())
    }
