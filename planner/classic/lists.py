"""Operator lists of networks: shipped ones, and others listed when they are first asked for."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.classic.identify import Sizes
from profiles.catalog import CATALOG
from profiles.errors import ArtifactError, InputError
from profiles.models.operator_list import ListedOperator, OperatorList

PATH = CATALOG / "networks.json.gz"
Key = tuple[str, Sizes, str]
FIELDS = ("name", "kind", "phase", "dtype", "count", "dims", "read_bytes", "written_bytes")


def key_text(key: Key) -> str:
    """A list's key in the shipped file."""
    network, sizes, precision = key
    return f"{network}|{'x'.join(map(str, sizes))}|{precision}"


def pack(listed: OperatorList) -> dict[str, Any]:
    """A list in JSON types, its operators as rows."""
    return {
        "name": listed.name,
        "precision": listed.precision,
        "parameters": [listed.num_parameters, listed.num_parameter_tensors],
        "saved": listed.saved_bytes,
        "peak": listed.peak_bytes,
        "operators": [[getattr(one, name) for name in FIELDS] for one in listed.operators],
    }


def unpack(data: dict[str, Any]) -> OperatorList:
    """The list that `pack` packed."""
    operators = []
    for row in data["operators"]:
        values = dict(zip(FIELDS, row, strict=True))
        values["dims"] = tuple(tuple(size) for size in values["dims"])
        values["read_bytes"], values["written_bytes"] = tuple(values["read_bytes"]), tuple(values["written_bytes"])
        operators.append(ListedOperator(**values))
    return OperatorList(
        name=data["name"],
        precision=data["precision"],
        num_parameters=data["parameters"][0],
        num_parameter_tensors=data["parameters"][1],
        operators=tuple(operators),
        saved_bytes=tuple(data["saved"]),
        peak_bytes=tuple(data["peak"]),
    )


def write_lists(lists: Iterable[tuple[Key, OperatorList]], path: Path = PATH) -> None:
    """Write the shipped file."""
    data = {key_text(key): pack(listed) for key, listed in lists}
    text = json.dumps(data, separators=(",", ":"), sort_keys=True)
    with gzip.GzipFile(path, "wb", mtime=0) as stream:
        stream.write(text.encode())


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Any]:
    try:
        with gzip.open(PATH, "rb") as stream:
            data = json.loads(stream.read())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{PATH} cannot be read: {error}") from None
    assert isinstance(data, dict)
    return data


@lru_cache(maxsize=512)
def operator_list(network: str, sizes: Sizes, precision: str) -> OperatorList:
    """The list of a network; one that is not shipped is made by running it under fake tensors, which takes seconds.

    Raises: InputError where it cannot be built or listed.
    """
    found = _shipped().get(key_text((network, sizes, precision)))
    return unpack(found) if found is not None else list_now(network, sizes, precision)


def list_now(network: str, sizes: Sizes, precision: str) -> OperatorList:
    """The list of a network, made afresh.

    Raises: InputError where it cannot be built or listed.
    """
    from profiles.networks.examples import subject
    from profiles.tracing.operator_lists import list_operators

    made = subject(network, sizes)
    try:
        return list_operators(network, made.build, made.example, made.loss, precision)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        # torch's for sizes that do not go together, and for what tensors without numbers cannot tell.
        raise InputError(f"{network[:60]} cannot be listed: {str(error)[:120]}") from None
