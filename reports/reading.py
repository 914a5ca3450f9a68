"""The files that `compare` is given: which kind they are, runs read from them, and that nothing overwrites them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import InputError
from profiles.inputs.foreign import real_path

if TYPE_CHECKING:
    from reports.comparison import Source


def in_folders(paths: Sequence[Path]) -> list[Path]:
    """The runs of folders in place of them.

    Raises: InputError for a folder without runs.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.run.json")) if os.path.isdir(path) else [path]
        refuse(not inside, f"{path} has no runs (*.run.json): `execute --runs {path}` keeps them there")
        found += inside
    return found


def kind_of(paths: Sequence[Path]) -> str:
    """What the files are: run, rehearsal, compression, or table.

    Raises: InputError where they are not all of one kind.
    """
    from profiles.artifacts import artifact_kind

    kinds = ["table" if path.suffix.lower() == ".csv" else artifact_kind(path) or _of_others(path) for path in paths]
    for kind in ("table", "rehearsal", "compression"):
        if kind in kinds:
            refuse(len(set(kinds)) > 1, f"{kind}s and runs cannot be compared in one call: they say different things")
            return kind
    return "run"


def _of_others(path: Path) -> str | None:
    """A log of other software counts as a table of one run."""
    from reports.published.jobs import is_job

    return "table" if is_job(path) else None


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """The run files, each under its shortest distinct name.

    Raises: ArtifactError where a file is missing, damaged or no run; InputError where one is given twice.
    """
    from executor.run.measurement import RunFile
    from profiles import artifacts
    from reports.comparison import Source

    resolved = [real_path(path) for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise InputError(f"{path} is given twice; give each run once")
    names = [path.name for path in paths]
    are_distinct = len(set(names)) == len(names)
    files = [artifacts.read(path, "run", RunFile) for path in paths]
    for file in files:
        file.workload.check()
    shown = (path.name if are_distinct else str(path) for path in paths)
    return [Source(name=name, file=file) for name, file in zip(shown, files, strict=True)]


def refuse(is_wrong: bool, sentence: str) -> None:
    """Raise an InputError of one sentence where something is wrong."""
    if is_wrong:
        raise InputError(sentence)


def check_outputs(outputs: Mapping[str, Path | None], inputs: Sequence[Path]) -> None:
    """Check files to write, by option: none is a folder, an input, or another output.

    Raises: InputError.
    """
    taken = [real_path(path) for path in inputs]
    for option, path in outputs.items():
        if path is not None:
            refuse(os.path.isdir(path), f"{path} is a folder; give {option} the name of the file to write")
            refuse(
                real_path(path) in taken,
                f"{option} {path} would overwrite an input or another output; give another name",
            )
            taken.append(real_path(path))
