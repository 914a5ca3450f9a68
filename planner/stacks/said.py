"""Settings as a file of other software states them: key, value and line, whether JSON, YAML, TOML, Python or flags.

Nothing is executed: Python is parsed, shell is split into words.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from profiles.errors import InputError
from profiles.inputs.foreign import shown

# What is nested deeper, or has more settings, is no configuration.
DEEPEST, MOST = 32, 20_000
# What our own files have where they cannot have a comment.
WRITTEN_BY = "_written_by"
# What Hugging Face fills in from elsewhere.
AUTO = "auto"
Rename = Callable[[Iterable["Setting"]], Iterable["Setting"]]
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")
ASSIGNMENT = re.compile(r"(?:export\s+)?(\w+)=(.*)")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its key with dots between levels, its value, its line."""

    key: str
    value: Any
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.key}: {shown(self.value)}"


def as_it_is(settings: Iterable[Setting]) -> Iterable[Setting]:
    """Settings by their own names."""
    return settings


class Settings:
    """The settings of one file. What is taken is understood; what is left in the end was not."""

    def __init__(self, path: Path, settings: Iterable[Setting]) -> None:
        """Raises: InputError where a key has two values, with both lines; where there are too many."""
        self.path = path
        self._by_key: dict[str, Setting] = {}
        self._left: dict[str, Setting] = {}
        for setting in settings:
            if setting.key == WRITTEN_BY:
                continue
            known = self._by_key.setdefault(setting.key, setting)
            if known.value != setting.value:
                raise InputError(f"{path}: {known} contradicts {setting}: leave one of them out")
            self._left[setting.key] = known
            if len(self._by_key) > MOST:
                raise InputError(f"{path}: it has more than {MOST:,} settings, which no configuration has")

    def add(self, setting: Setting) -> None:
        """Add what no line says, unless one does."""
        self._by_key.setdefault(setting.key, setting)

    def find(self, key: str) -> Setting | None:
        """The setting of a key, None where there is none; from now on it counts as understood."""
        self._left.pop(key, None)
        return self._by_key.get(key)

    def take(self, key: str, usual: Any = None) -> Any:
        """The value of a key, the `usual` one where there is none."""
        found = self.find(key)
        return usual if found is None else found.value

    @property
    def names(self) -> tuple[str, ...]:
        """All keys, in order."""
        return tuple(self._by_key)

    def has(self, section: str) -> bool:
        """Whether there is a key, or any below it."""
        return any(key == section or key.startswith(f"{section}.") for key in self._by_key)

    def take_known(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Those settings that are known and change no price, each with its line; a key that ends in .* is a section."""
        known = tuple(keys)
        exact = {key for key in known if not key.endswith(".*")}
        sections = tuple(key[:-1] for key in known if key.endswith(".*"))
        taken = [one for key, one in self._left.items() if key in exact or key.startswith(sections or ("\0",))]
        for setting in taken:
            del self._left[setting.key]
        return tuple(map(str, taken))

    @property
    def unread(self) -> tuple[str, ...]:
        """What nobody took, each with its line."""
        return tuple(map(str, self._left.values()))

    def contradiction(self, keys: Iterable[str], why: str) -> InputError:
        """The error for settings that do not go together, each with its line."""
        named = "; ".join(str(self._by_key[key]) for key in keys if key in self._by_key)
        return InputError(f"{self.path}: {named}: {why}")


def from_yaml(path: Path, text: str) -> Settings:
    """Settings of YAML or JSON.

    Raises: InputError where it is neither, or no mapping; where a key has two values.
    """
    try:
        # Tabs between JSON's words are none of YAML's; within strings they would be escaped.
        node = yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "nested too deep"
        raise InputError(f"{path}: {where}{problem}: give a file that its own software reads") from None
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}: no settings are in it: give a file of keys and values")
    return Settings(path, _below(path, node, "", 0))


def _below(path: Path, node: yaml.MappingNode, prefix: str, depth: int) -> Iterator[Setting]:
    if depth > DEEPEST:
        raise InputError(f"{path}: line {node.start_mark.line + 1}: nested too deep for a configuration")
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _below(path, value, f"{name}.", depth + 1)
        else:
            yield Setting(name, _plain(value, depth), key.start_mark.line + 1)


def _plain(node: yaml.Node, depth: int) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(one, depth + 1) for one in node.value] if depth < DEEPEST else []
    return plain_value(node.value) if node.style in (None, "") else node.value


def plain_value(text: str) -> Any:
    """A number, truth or nothing where a bare word is one, in JSON's, YAML's or Python's spelling; else the word."""
    word = text.strip()
    known = {"true": True, "false": False, "null": None, "none": None, "~": None, "": None, "yes": True}
    if word.lower() in known and word != "none":
        return known[word.lower()]
    try:
        value = json.loads(word)
    except ValueError:
        return word
    return value if isinstance(value, int | float) else word


def from_toml(path: Path, text: str, rename: Rename = as_it_is) -> Settings:
    """Settings of TOML.

    Raises: InputError where it is none.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not TOML ({error}): give a file that its own software reads") from None
    lines = _toml_lines(text)
    return Settings(path, rename(Setting(key, value, lines.get(key, 1)) for key, value in flat(content)))


def _toml_lines(text: str) -> dict[str, int]:
    section, lines = "", {}
    for number, line in enumerate(text.splitlines(), 1):
        head = re.match(r"\s*\[([^\]]+)\]", line)
        pair = re.match(r"\s*([\w.\"-]+)\s*=", line)
        if head:
            section = head[1].strip() + "."
        elif pair:
            lines[section + pair[1].strip('"')] = number
    return lines


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots between levels, and their values."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dots in their keys as mappings within mappings."""
    content: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        below = content
        for section in sections:
            below = below.setdefault(section, {})
        below[last] = value
    return content


def from_flags(path: Path, text: str, rename: Rename = as_it_is) -> Settings:
    """Settings of a launch script: its assignments by name, and its flags without their dashes.

    A variable stands for what the script gives it, or for its own default. Flags without a value are true.
    Raises: InputError where a flag has two values.
    """
    variables: dict[str, str] = {}
    settings: list[Setting] = []
    for number, words in _commands(text):
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
        raise InputError(
            f"{path}: {line}no Python that can be parsed: give a file that its own software reads"
        ) from None
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
