"""What a user's loop keeps beside its tensors: the rates of its optimizer, and whatever it gives to be kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from executor.axes.optimizer import KIND
from executor.run.checkpoint import LOOP
from profiles.errors import ArtifactError, InputError
from profiles.inputs.foreign import read_json

NUMBERS = (int, float, bool)


def loop_state(optimizer: Optimizer, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """The numbers of an optimizer's kinds of groups, and `extra`.

    Raises: InputError where JSON cannot hold `extra`.
    """
    groups = {
        group[KIND]: {name: value for name, value in group.items() if isinstance(value, NUMBERS)}
        for group in optimizer.param_groups
    }
    try:
        return {"groups": groups, "extra": json.loads(json.dumps(dict(extra or {})))}
    except (TypeError, ValueError) as error:
        raise InputError(f"save(extra=...): JSON cannot hold it: {error}") from error


def restore_loop(path: Path, optimizer: Optimizer) -> dict[str, Any]:
    """Give an optimizer its groups' numbers back; what was saved as `extra`.

    Raises: ArtifactError where the file is none of ours.
    """
    found = read_json(path / LOOP, "the folder was not saved by job.save")
    groups, extra = (found.get("groups"), found.get("extra")) if isinstance(found, dict) else (None, None)
    if not isinstance(groups, dict) or not isinstance(extra, dict):
        raise ArtifactError(f"{path / LOOP} was not saved by job.save")
    for group in optimizer.param_groups:
        numbers = groups.get(group[KIND])
        for name, value in numbers.items() if isinstance(numbers, dict) else ():
            if isinstance(value, NUMBERS) and isinstance(group.get(name), NUMBERS):
                group[name] = value
    return extra
