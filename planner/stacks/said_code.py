"""Settings as code of other software states them: Python is parsed, shell is split into words, nothing is executed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from planner.stacks.said import Rename, Setting, Settings, as_it_is, plain_value
from profiles.errors import InputError

VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")
ASSIGNMENT = re.compile(r"(\w+)=(.*)")


def from_flags(path: Path, text: str, rename: Rename = as_it_is) -> Settings:
    """Settings of a launch script: its assignments by name, and its flags without their dashes.

    A variable stands for what the script gives it, or for its own default. Flags without a value are true.
    Raises: InputError where a flag has two values.
    """
    variables: dict[str, str] = {}
    settings: list[Setting] = []
    for number, words in _commands(text):
        words = words[1:] if words[:1] == ["export"] else words
        assigned = ASSIGNMENT.fullmatch(words[0]) if words else None
        while assigned:
            variables[assigned[1]] = _filled(assigned[2], variables)
            settings.append(Setting(assigned[1], plain_value(variables[assigned[1]]), number))
            words = words[1:]
            assigned = ASSIGNMENT.fullmatch(words[0]) if words else None
        settings += _flags([_filled(word, variables) for word in words], number)
    return Settings(path, rename(settings))


def _commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """The words of each command with the line that it begins on; lines that end in a backslash go on."""
    whole, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        start = start or number
        if line.rstrip().endswith("\\"):
            whole += line.rstrip()[:-1] + " "
            continue
        try:
            words = shlex.split(whole + line, comments=True)
        except ValueError:
            words = (whole + line).split()
        yield start, words
        whole, start = "", 0
    if whole:
        yield start, whole.split()


def _filled(word: str, variables: Mapping[str, str]) -> str:
    return VARIABLE.sub(lambda found: variables.get(found[1] or found[3], found[2] or found[0]), word)


def _flags(words: list[str], line: int) -> Iterator[Setting]:
    for position, word in enumerate(words):
        if not word.startswith("--") or len(word) < 3:
            continue
        name, equals, value = word[2:].partition("=")
        following = words[position + 1] if position + 1 < len(words) else "--"
        if not equals:
            value = "true" if following.startswith("--") else following
        yield Setting(name, plain_value(value), line)


def from_python(path: Path, text: str, rename: Rename = as_it_is) -> Settings:
    """Keyword arguments of calls, by the class that is called, and what is assigned to attributes.

    `ParallelismConfig(tensor_parallel_degree=2)` has the key `ParallelismConfig.tensor_parallel_degree`, and
    `config.training.steps = 5` the key `training.steps`; a call's first argument has the key `.0`. Only values that are
    spelled out are read; where a value is a call, what is called.
    Raises: InputError where it is no Python, or a key has two values.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        raise InputError(f"{path}: {line}not valid Python: give a file that its own software reads") from None
    return Settings(path, rename(_stated(tree)))


def _stated(tree: ast.Module) -> Iterator[Setting]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            owner = ast.unparse(node.func)
            named = [(str(place), value) for place, value in enumerate(node.args[:1])]
            named += [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
            for name, stated in named:
                if (value := literal(stated)) is not ...:
                    yield Setting(f"{owner}.{name}", value, stated.lineno)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            _, _, key = ast.unparse(node.targets[0]).partition(".")
            if (value := literal(node.value)) is not ...:
                yield Setting(key, value, node.lineno)


def literal(node: ast.expr) -> Any:
    """The value that an expression spells out, or what it calls; ... where it has to be computed."""
    if isinstance(node, ast.Call):
        return ast.unparse(node.func)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return ...
