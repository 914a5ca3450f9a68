"""Strict files: a frozen dataclass to JSON and back.

Every file starts with `artifact` (what it is) and `schema` (its version); an unknown key, a wrong type or another
version is an ArtifactError that says where. Numbers that do not exist are null, never NaN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from profiles.errors import ArtifactError
from profiles.files import write_text
from profiles.inputs import foreign

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
SCHEMA_VERSION = 1
TOML_ADVICE = "give a file like those in profiles/catalog"
ARTIFACTS = {
    "model-profile": "profile model ... -o FILE",
    "onnx-profile": "profile model FILE.onnx -o FILE",
    "machine-profile": "profile machine ... -o FILE",
    "plan": "plan ... -o FILE",
    "purchase": "plan --gpus 64,128 ... -o FILE",
    "run": "execute ... -o FILE",
    "rehearsal": "execute --rehearse ... -o FILE",
    "compression": "execute --compress ... -o FILE",
    "corrections": "compare RUN.JSON ... --learn FILE",
}


# By kind: making one takes as long as reading a file with it.
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def artifact_kind(path: Path) -> str | None:
    """The `artifact` word of a JSON file, or None where the file is not one of ours or cannot be read."""
    try:
        head = foreign.read_json(path, "")
    except ArtifactError:
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
    return parse(foreign.read_json(path, _wanted(artifact)), artifact, kind, str(path))


def check_kind(path: Path, artifact: str) -> None:
    """Refuse a file that is no `artifact`, before libraries are loaded that carry it out.

    Raises: ArtifactError where the file is missing, not JSON, of another kind or schema.
    """
    _fields(foreign.read_json(path, _wanted(artifact)), artifact, str(path))


def parse(data: Any, artifact: str, kind: type[T], where: str) -> T:
    """Check parsed JSON `data` against `artifact` and `kind`; `where` names its origin in errors."""
    return validate(_fields(data, artifact, where), kind, where)


def _fields(data: Any, artifact: str, where: str) -> dict[str, Any]:
    if not isinstance(data, dict) or "artifact" not in data:
        raise ArtifactError(f"{where} was not written by this program: {_wanted(artifact)}")
    if data["artifact"] != artifact:
        raise ArtifactError(
            f"{where} is a {data['artifact']} file, not a {artifact}: {_wanted(artifact, data['artifact'], where)}"
        )
    if data.get("schema") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{where} has schema {data.get('schema')}, this version reads {SCHEMA_VERSION}: {_wanted(artifact)}"
        )
    fields = {key: value for key, value in data.items() if key not in ("artifact", "schema")}
    foreign.refuse_line_breaks(fields, where)
    return fields


def validate(fields: Mapping[str, Any], kind: type[T], where: str) -> T:
    """`fields` as a `kind`, strictly.

    Raises: ArtifactError with the first wrong key, its value and the rule.
    """
    result = validate_given(fields, kind, where, must_have_all=True)
    assert result is not None
    return result


def validate_given(fields: Mapping[str, Any], kind: type[T], where: str, *, must_have_all: bool = False) -> T | None:
    """The same of what is given: None where a field that has no default is missing and nothing else is wrong.

    Raises: ArtifactError.
    """
    try:
        # Through JSON, because strict mode takes a list for a tuple only there.
        result: T = _adapter(kind).validate_json(json.dumps(fields))
    except ValidationError as error:
        faults = [fault for fault in error.errors(include_url=False) if must_have_all or fault["type"] != "missing"]
        if not faults:
            return None
        location = ".".join(str(part) for part in faults[0]["loc"]) or "top level"
        raise ArtifactError(f"{where}: at {location}: {_broken(faults[0])}") from None
    return result


def _broken(error: ErrorDetails) -> str:
    """What is wrong with one value, with the value where it stands for the fault."""
    message = error["msg"].removeprefix("Value error, ")
    words = message[:1].lower() + message[1:]
    return words.replace("input should", f"{foreign.shown(error['input'])} should", 1)


def read_toml(path: Path, kind: type[T], like: str = "") -> T:
    """Read a catalogue file strictly; where it has the key `like`, over the entries of the file that this names.

    Raises: ArtifactError where the file is missing, is no TOML, or has unknown or wrong keys.
    """
    entries = foreign.read_toml(path, TOML_ADVICE)
    if like and entries.get(like):
        entries = _over(foreign.read_toml(path.with_name(f"{entries[like]}.toml"), TOML_ADVICE), entries)
    return validate(entries, kind, str(path))


def _over(of_other: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Another file's entries with the own ones in their place."""
    result = dict(of_other)
    for name, value in own.items():
        result[name] = _over(result.get(name, {}), value) if isinstance(value, Mapping) else value
    return result


def _wanted(artifact: str, given: str = "", where: str = "") -> str:
    if (artifact, given) == ("plan", "purchase"):
        return f"take the plan of one of its rows with `plan --from {where} --rank ROW -o plan.json`"
    return f"make one with `{ARTIFACTS[artifact]}`"
