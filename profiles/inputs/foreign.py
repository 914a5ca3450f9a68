"""Files from outside read with care: text of bounded size, JSON and TOML of bounded depth, or a sentence that says why.

What is read holds objects, lists, texts, truths, nulls and finite numbers alone, and no key twice. Torch-free.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from profiles.errors import ArtifactError

# A run of a million steps takes a fifth of this; what is larger is no file of ours, or has no end (/dev/zero).
LARGEST_BYTES = 256 * 2**20
# The deepest file that is written here, a model profile, has nine levels.
DEEPEST = 64
LONGEST_SHOWN = 60


def read_text(path: Path, wanted: str) -> str:
    """The text of a file, in UTF-8 with or without a byte order mark; `wanted` says what to give instead.

    Raises: ArtifactError where it is missing, a folder, not readable, too large, or not text.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise ArtifactError(f"cannot read {path}: it does not exist; {wanted}") from None
    except IsADirectoryError:
        raise ArtifactError(f"cannot read {path}: it is a folder; {wanted}") from None
    except OSError as error:
        raise ArtifactError(f"cannot read {shown(str(path))}: {error.strerror or error}") from None
    if len(content) > LARGEST_BYTES:
        raise ArtifactError(f"{path} has more than {LARGEST_BYTES >> 20} MiB; {wanted}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text (byte {error.start}); {wanted}") from None


def read_json(path: Path, wanted: str) -> Any:
    """The content of a JSON file.

    Raises: ArtifactError where it cannot be read, is not JSON or is nested too deep, names a key twice, or has a number
    that does not exist.
    """
    return parse_json(read_text(path, wanted), path, wanted)


def parse_json(text: str, path: Path, wanted: str) -> Any:
    """The content of a JSON text that stands in a file.

    Raises: ArtifactError as `read_json`.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_twins)
    except RecursionError:
        raise _too_deep(path, wanted) from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON ({_fault(error)}); {wanted}") from None
    _check(content, path, wanted)
    return content


def read_toml(path: Path, wanted: str) -> dict[str, Any]:
    """The content of a TOML file.

    Raises: ArtifactError where it cannot be read, is not TOML or is nested too deep, or has a date or a number that
    does not exist.
    """
    text = read_text(path, wanted)
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise _too_deep(path, wanted) from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not TOML ({_fault(error)}); {wanted}") from None
    _check(content, path, wanted)
    return content


def refuse_line_breaks(content: Any, where: str) -> None:
    """Refuse texts of several lines, for names stand in lines of tables and sentences; `content` is as it was read.

    Raises: ArtifactError.
    """
    below = [content]
    while below:
        value = below.pop()
        if isinstance(value, dict | list):
            below += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and "\n" in value:
            raise ArtifactError(f"{where}: {shown(value)} should be on one line")


def real_path(path: Path) -> Path:
    """Where a path leads, links followed; reading says where they lead in a circle."""
    return Path(os.path.realpath(path))


def shown(value: object) -> str:
    """A value from outside as a message shows it: as in JSON, on one line, of bounded length."""
    text = json.dumps(value, default=str)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def _without_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object; which of two values under one key is meant, nobody can say."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {shown(twice)} twice in one object")
    return content


def _check(content: Any, path: Path, wanted: str) -> None:
    """Refuse, level by level, what is too deep, and what is no finite number, text, truth or null."""
    level, depth, wrong = [content], 0, []
    while level:
        depth += 1
        if depth > DEEPEST:
            raise _too_deep(path, wanted)
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict | list):
                below += value.values() if isinstance(value, dict) else value
            elif isinstance(value, float):
                wrong += [] if math.isfinite(value) else [value]
            elif not isinstance(value, str | int | None):
                wrong.append(value)
        level = below
    if wrong:
        place = next(_places(content, wrong[0]), "top level")
        raise ArtifactError(f"{path}: at {place}: {shown(wrong[0])} should be a finite number or a text; {wanted}")


def _places(content: Any, value: object, before: str = "") -> Iterator[str]:
    """Where the very value stands in what is no deeper than it may be, as keys with dots between."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, below in pairs:
        place = f"{before}.{key}" if before else str(key)
        if below is value:
            yield place
        yield from _places(below, value, place)


def _fault(error: ValueError) -> str:
    """What the parser says; of a number of very many digits Python adds how a program would allow them."""
    return str(error).partition(" for integer string conversion")[0]


def _too_deep(path: Path, wanted: str) -> ArtifactError:
    return ArtifactError(f"{path} is nested deeper than {DEEPEST} levels; {wanted}")
