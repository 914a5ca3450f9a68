"""Which modules of the user's a command may import: a file only names one, the command line allows it. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from profiles.errors import InputError

if TYPE_CHECKING:
    from profiles.models.profile import WorkloadSpec

OPTION = "--trust-module"


def is_factory(model: str) -> bool:
    """Whether `model`, as a command line names it, is meant as package.module:factory rather than as a file."""
    return ":" in model and not os.path.exists(model)


def named_modules(*models: str) -> tuple[str, ...]:
    """The modules that a command line names as models of its own, and so allows."""
    return tuple(model.partition(":")[0] for model in models if is_factory(model))


def check_trusted(spec: WorkloadSpec, trusted: Sequence[str], where: str) -> None:
    """Check that what builds the model may be imported: `trusted` are the modules that the command line allows.

    `where` is what names the model, for the error.
    Raises: InputError where it is a module that is not trusted, or a name that none can have.
    """
    if spec.kind != "module":
        return
    parts = spec.factory.split(":")
    if len(parts) != 2 or not all(word.isidentifier() for word in (*parts[0].split("."), parts[1])):
        raise InputError(f"{where}: {spec.factory!r} cannot name a factory: give package.module:factory")
    if spec.module not in trusted:
        raise InputError(
            f"{where} names the module {spec.module} to build its model, and a file runs no code unasked: if you trust "
            f"that module, give {OPTION} {spec.module}"
        )
