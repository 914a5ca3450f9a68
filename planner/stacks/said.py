"""Settings as a file of other software states them: key, value and line, of JSON, YAML and TOML."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from planner.stacks.secrets import HIDDEN, is_secret
from profiles.errors import InputError
from profiles.inputs.foreign import shown

# What is nested deeper, or has more settings, is no configuration.
DEEPEST, MOST = 32, 20_000
# What our own files have where they cannot have a comment.
WRITTEN_BY = "_written_by"
# What Hugging Face fills in from elsewhere.
AUTO = "auto"
Rename = Callable[[Iterable["Setting"]], Iterable["Setting"]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its key with dots between levels, its value, its line."""

    key: str
    value: Any
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.key}: {HIDDEN if is_secret(self.key) else shown(self.value)}"


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
        raise InputError(f"{path}: it has no settings: give a file of keys and values")
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
