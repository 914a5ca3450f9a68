"""Logs of other software beside tables of runs: each is one row, configuration and measurement together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from planner.stacks.handover import Given
from planner.stacks.registry import read, readers
from planner.stacks.rows import cells_of
from profiles.errors import InputError
from profiles.inputs.foreign import read_text
from reports.published.rows import Row

WANTED = "give runs of `execute`, tables of runs (.csv), or logs of other software"


def is_job(path: Path) -> bool:
    """Whether a file is one of other software; what cannot be read is none."""
    try:
        text = read_text(path, WANTED)
    except InputError:
        return False
    return any(reader.recognises(path, text) for reader in readers())


def read_jobs(paths: Sequence[Path], fill: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """A row of each file, empty cells filled, and notes on what was assumed and not understood.

    Raises: InputError where one cannot be read, has not run, or does not say what on.
    """
    rows, notes = [], []
    for path in paths:
        job = read(path, read_text(path, WANTED), Given())
        if not job.steps:
            raise InputError(f"{path} has no timed steps: `plan --from {path}` judges jobs that have not run")
        cells = cells_of(job, path)
        cells |= {name: value for name, value in fill.items() if not cells.get(name)}
        if not cells.get("gpu_type"):
            raise InputError(f"{path}: the log does not say which devices it ran on: give --device or --cluster")
        rows.append(Row(cells=cells, family=cells["family"]))
        notes += [f"{path.name}: {word}" for word in job.assumed]
        notes += [f"{path.name}: not understood: {word}" for word in job.unread]
    return rows, notes
