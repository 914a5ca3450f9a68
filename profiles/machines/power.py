"""What a node draws beside its devices, and a building beside its nodes: shipped assumptions. Torch-free."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from profiles.artifacts import STRICT, read_toml
from profiles.catalog import CATALOG


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """`host_share` is watts of the rest of a node over its devices' rated ones, `pue` a building's over its nodes'."""

    __pydantic_config__ = STRICT

    host_share: float
    pue: float
    sources: dict[str, str]


@functools.cache
def load_power() -> Power:
    """The shipped assumptions."""
    return read_toml(CATALOG / "power.toml", Power)
