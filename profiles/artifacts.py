"""Strict files: a frozen dataclass to JSON and back.

Every file starts with `artifact` (what it is) and `schema` (its version); an unknown key, a wrong type or another
version is an ArtifactError that says where. Numbers that do not exist are null, never NaN.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from profiles.errors import ArtifactError
from profiles.files import write_text

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
SCHEMA_VERSION = 1
ARTIFACTS = {
    "model-profile": "profile model",
    "machine-profile": "profile machine",
    "plan": "plan",
    "run": "execute",
}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def artifact_kind(path: Path) -> str | None:
    """The `artifact` word of a JSON file, or None where the file is not one of ours or cannot be read."""
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return head.get("artifact") if isinstance(head, dict) else None


def dump(artifact: str, value: Any) -> str:
    """The file text of `value`: JSON with the artifact's word and schema version first, defaults left out."""
    fields = _adapter(type(value)).dump_python(value, mode="json", exclude_defaults=True)
    # A model profile holds thousands of small numbers that nobody reads one to a line.
    indent = None if artifact == "model-profile" else 1
    separators = (",", ":") if indent is None else None
    return (
        json.dumps({"artifact": artifact, "schema": SCHEMA_VERSION, **fields}, indent=indent, separators=separators)
        + "\n"
    )


def write(path: Path, artifact: str, value: Any) -> None:
    """Write `value` to `path`: first to a temporary file beside it, then renamed, so that no half file is seen.

    Raises: EnvironmentFailure where the disk is full or the folder cannot be written.
    """
    write_text(path, dump(artifact, value))


def read(path: Path, artifact: str, kind: type[T]) -> T:
    """Read a file that `write` made.

    Raises: ArtifactError where the file is missing, damaged, of another kind or schema, or has unknown or wrong keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not text: {_wanted(artifact)}") from error
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON ({error}): {_wanted(artifact)}") from error
    return parse(data, artifact, kind, str(path))


def parse(data: Any, artifact: str, kind: type[T], where: str) -> T:
    """Check parsed JSON `data` against `artifact` and `kind`; `where` names its origin in errors."""
    if not isinstance(data, dict) or "artifact" not in data:
        raise ArtifactError(f"{where} was not written by this program: {_wanted(artifact)}")
    if data["artifact"] != artifact:
        raise ArtifactError(f"{where} is a {data['artifact']} file, not a {artifact}: {_wanted(artifact)}")
    if data.get("schema") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{where} has schema {data.get('schema')}, this version reads {SCHEMA_VERSION}: {_wanted(artifact)}"
        )
    fields = {key: value for key, value in data.items() if key not in ("artifact", "schema")}
    return validate(fields, kind, where)


def validate(fields: dict[str, Any], kind: type[T], where: str) -> T:
    """`fields` as a `kind`, strictly; the error names the first wrong key."""
    try:
        # Through JSON, because strict mode takes a list for a tuple only there.
        result: T = _adapter(kind).validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"]) or "top level"
        raise ArtifactError(f"{where}: at {location}: {first['msg'].lower()}") from error
    return result


def read_toml(path: Path, kind: type[T]) -> T:
    """Read a catalogue file strictly.

    Raises: ArtifactError where the file is missing, is no TOML, or has unknown or wrong keys.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ArtifactError(f"{path} is not TOML: {error}") from error
    return validate(fields, kind, str(path))


def _wanted(artifact: str) -> str:
    return f"make one with `{ARTIFACTS[artifact]} ... -o FILE`"
