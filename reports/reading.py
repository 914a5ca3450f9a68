"""The files that `compare` is given: which kind they are, runs read from them, and that nothing overwrites them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import ArtifactError, InputError
from profiles.inputs import foreign
from profiles.inputs.foreign import real_path

if TYPE_CHECKING:
    from executor.run.measurement import RunFile
    from reports.changes import Side
    from reports.comparison import Source

# Where a page keeps the runs that it was made of.
RUNS_IN_PAGE = re.compile(r'<script type="application/json" id="runs">(.*?)</script>', re.DOTALL)
PAGE_ADVICE = "give a page that `compare RUN.JSON -o PAGE.html` wrote, or the run files"


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
    kinds = [_kind_of(path) for path in paths]
    for kind in ("table", "rehearsal", "compression"):
        if kind in kinds:
            refuse(len(set(kinds)) > 1, f"{kind}s and runs cannot be compared in one call: they hold different things")
            return kind
    return "run"


def _kind_of(path: Path) -> str | None:
    """A log of other software counts as a table of one run."""
    from profiles.artifacts import artifact_kind
    from reports.published.jobs import is_job

    if path.suffix.lower() == ".csv":
        return "table"
    if is_page(path):
        return "run"
    return artifact_kind(path) or ("table" if is_job(path) else None)


def is_page(path: Path) -> bool:
    """Whether a file is a page, by its name."""
    return path.suffix.lower() in (".html", ".htm")


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """The run files, each under its shortest distinct name; a page that shows runs stands for those.

    Raises: ArtifactError where a file is missing, damaged or no run; InputError where one is given twice.
    """
    return [source for group in read_groups([[path] for path in paths]) for source in group]


def read_groups(groups: Sequence[Sequence[Path]]) -> list[list[Source]]:
    """The run files of groups, as `read_sources` reads them.

    Raises: ArtifactError, InputError.
    """
    from reports.comparison import Source

    resolved = [real_path(path) for paths in groups for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise InputError(f"{path} is given twice; give each run once")
    names = [path.name for paths in groups for path in paths]
    are_distinct = len(set(names)) == len(names)
    found = []
    for paths in groups:
        group: list[Source] = []
        for path in paths:
            name = path.name if are_distinct else str(path)
            group += [Source(name=f"{name}: {own}" if own else name, file=file) for own, file in _files_of(path)]
        found.append(group)
    for group in found:
        for source in group:
            source.file.workload.check()
    return found


def _files_of(path: Path) -> list[tuple[str, RunFile]]:
    """The run file, or of a page those that it was made of, each with the name that it has there."""
    from executor.run.measurement import RunFile
    from profiles import artifacts

    if not is_page(path):
        return [("", artifacts.read(path, "run", RunFile))]
    match = RUNS_IN_PAGE.search(foreign.read_text(path, PAGE_ADVICE))
    kept = foreign.parse_json(match[1], path, PAGE_ADVICE) if match else None
    if not isinstance(kept, list) or not kept or not all(isinstance(one, dict) and "file" in one for one in kept):
        raise ArtifactError(f"{path} holds no runs: {PAGE_ADVICE}")
    return [(str(one.get("name", "")), artifacts.parse(one["file"], "run", RunFile, str(path))) for one in kept]


def sides_of(
    given: Sequence[Path], groups: Sequence[Sequence[Source]], is_asked: bool | None
) -> tuple[Side, Side] | None:
    """What is given as before and after, each a run, a page or a folder of runs; None of more than two or of one.

    `groups` are the runs of what is given, in its order. Where nobody asked, two that have no model in common are none.
    Raises: InputError where it is asked for and there are not two.
    """
    from reports.changes import Side, are_alike
    from reports.history import in_order

    if len(given) != 2 or is_asked is False:
        refuse(bool(is_asked), "--changes needs two inputs: compare BEFORE AFTER --changes")
        return None
    are_distinct = given[0].name != given[1].name
    before, after = (
        Side(name=path.name if are_distinct else str(path), sources=in_order(group))
        for path, group in zip(given, groups, strict=True)
    )
    return (before, after) if is_asked or are_alike(before, after) else None


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
