"""The cores that this process may run on, where the system tells, and else all of them. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterable


def usable_cores() -> tuple[int, ...]:
    """Numbers of the cores that this process may run on: on Linux what it was given, elsewhere all that there are."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def stay_on(cores: Iterable[int]) -> None:
    """Keep the calling thread on `cores`; nothing on systems that choose themselves, as macOS does."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
