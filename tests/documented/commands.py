"""Commands as pages show them: taken apart, held against what the real commands take, run, and their output found."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer

from executor import options as of_execute
from planner.terminal import options as of_plan
from profiles.terminal.options import check_options
from tests.commands import APPS, outcome
from tests.documented.pages import ROOT, Block

COLUMNS, UMBRELLA = 100, "trainwright"
ELLIPSIS = "..."
TABLES = {"plan": (of_plan.NEEDS, of_plan.TAKES), "execute": (of_execute.NEEDS, of_execute.TAKES)}
# Of a table that a page compares, so many.
NUM_ROWS = 3


@dataclass(slots=True)
class Command:
    """A line of a page with the lines that it prints."""

    words: list[str]
    output: list[str] = field(default_factory=list)


def commands_of(block: Block) -> list[Command]:
    """The commands of a block: behind `$` on a console, every line of a script."""
    found: list[Command] = []
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "sh":
            found.extend(Command(words) for part in line.split("&&") if (words := shlex.split(part, comments=True)))
        elif line.startswith("$ "):
            found.append(Command(shlex.split(line[2:], comments=True)))
        elif found:
            found[-1].output.append(line.rstrip())
    return found


def click_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words call, a command of `profile` for one, and the words that are left for it."""
    # `trainwright` leads to all four.
    words = words[1:] if words[0] == UMBRELLA else words
    command, rest = typer.main.get_command(APPS[words[0]]), words[1:]
    if hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def check_words(words: list[str]) -> None:
    """Hold words against what the command takes, and against what goes together.

    Raises: InputError, or what the parser has for it.
    """
    command, rest = click_command(words)
    context = command.make_context(words[0], list(rest))
    if words[0] in TABLES:
        check_options(context, *TABLES[words[0]])


def options_of(command: Any) -> Iterator[str]:
    """The options of a command, those that turn one off among them."""
    for parameter in command.params:
        if parameter.param_type_name == "option":
            yield from (*parameter.opts, *parameter.secondary_opts)
    yield "--help"


def runs_here(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands of a block in `folder`, in which it is given what it names, and find what it shows of them."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    for name, source in given_files(block):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".csv":
            rows = source.read_text(encoding="utf-8").splitlines(keepends=True)
            place.write_text("".join(rows[: 1 + NUM_ROWS]), encoding="utf-8")
        else:
            shutil.copy(source, place)
    (folder / "out").mkdir(exist_ok=True)
    for command in commands_of(block):
        code, text = outcome_of(tuple(command.words), block.marks.get("given", ""))
        assert code == 0, f"{block.name}: {shlex.join(command.words)} ended with {code}: {text}"
        find_lines(block, command.output, text)


@functools.cache
def outcome_of(words: tuple[str, ...], given: str) -> tuple[int, str]:
    """The code and the output of a command that was `given` some files; what several pages show is run once."""
    return outcome(words[0], *words[1:])


def given_files(block: Block) -> list[tuple[str, Path]]:
    """Files that a block is given: the name on the page, and a file of the repository."""
    given = [entry.split(" = ") for entry in block.marks.get("given", "").split(", ")]
    return [(entry[0], ROOT / entry[1]) for entry in given if len(entry) == 2]


def find_lines(block: Block, shown: list[str], text: str) -> None:
    """Find the lines of a page in what was printed: each run of lines as it stands, in order, more where `...` is."""
    printed, place, is_open = [plain(line) for line in text.splitlines()], 0, False
    for lines in runs_of_lines(shown):
        if lines == [ELLIPSIS]:
            is_open = True
            continue
        starts = range(place, len(printed)) if is_open else (place,)
        found = next((start for start in starts if printed[start : start + len(lines)] == lines), None)
        assert found is not None, f"{block.name} shows\n" + "\n".join(lines) + "\nbut printed was\n" + text
        place, is_open = found + len(lines), False
    assert not shown or is_open or place == len(printed), f"{block.name}: more was printed than is shown:\n{text}"


def runs_of_lines(shown: list[str]) -> list[list[str]]:
    """Lines of output between those that say that some are left out."""
    found: list[list[str]] = [[]]
    for line in shown:
        if line.strip() == ELLIPSIS:
            found += [[ELLIPSIS], []]
        elif line or found[-1]:
            found[-1].append(plain(line))
    return [lines for lines in found if lines]


def plain(line: str) -> str:
    """A line without what differs from one environment to the next."""
    return re.sub(r"torch \d+\.\d+\.\d+\S*", "torch", line.rstrip())
