"""What a user's loop keeps beside weights: what its optimizer holds, its rates, and whatever it gives to be kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from executor.axes.optimizer import KIND, own_share
from executor.run.checkpoint import LOOP
from profiles.errors import ArtifactError, InputError
from profiles.inputs.foreign import read_json

NUMBERS = (int, float, bool)


def make_states(optimizer: Optimizer) -> None:
    """Let an optimizer that has taken no step make what it keeps, as a step of rate 0 over gradients of 0 does.

    Raises: InputError where it keeps anything but tensors, which a checkpoint of any layout could not place.
    """
    own = own_share(optimizer)
    if not own.state:
        parameters = [parameter for group in own.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters]
        rates = [group["lr"] for group in own.param_groups]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for group in own.param_groups:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
        own.step()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for group, rate in zip(own.param_groups, rates, strict=True):
            group["lr"] = rate
        for values in own.state.values():
            # It was no step.
            if isinstance(values.get("step"), torch.Tensor):
                values["step"].zero_()
    for values in own.state.values():
        for name, value in list(values.items()):
            if value is None:
                del values[name]
            elif not isinstance(value, torch.Tensor):
                raise InputError(
                    f"{type(own).__name__} keeps {name} as a {type(value).__name__}: only tensors can be saved"
                )


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
