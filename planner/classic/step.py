"""Seconds of a training's step from its features and what runs taught, in columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.classic.components import KINDS
from planner.classic.features import Features, Words
from profiles.artifacts import STRICT, read_toml
from profiles.catalog import CATALOG
from profiles.laws.kernels import Array

PATH = CATALOG / "trainings.toml"
# The power by which the device's time and the host's blend: the longer one, nearly (assumed, as what follows).
BLEND = 4.0
# Of a step of forward and backward, what can hide an exchange.
BACKWARD_SHARE = 2 / 3
# Of a launch in forward and backward, what one of the optimizer's takes, whose loop does little between them.
OPTIMIZER_LAUNCH_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What runs taught: multiples of the laws' seconds by name, launches of the host in seconds, and the band.

    `values` has `kind units`, `generation ...`, `stack ...`, `host ...`, `path ...`; what it lacks is 1, or that of
    torch. `overlap` is the share of backward that hides an exchange. `bands` are half the widths of a band of 90 %, in
    the logarithm, of step times: by how many words of a training are not among those `known` (see bands).
    """

    __pydantic_config__ = STRICT

    values: dict[str, float]
    overlap: float
    bands: tuple[float, ...]
    known: tuple[str, ...]
    memory_band: float
    allocated_multiple: float
    device_multiple: float
    context_gib: float
    source: str


@lru_cache(maxsize=1)
def load_learned() -> Learned:
    """What is shipped."""
    return read_toml(PATH, Learned)


def lookup(learned: Learned, prefix: str, words: Words, missing: float = 1.0) -> Array:
    """A value by word for each training."""
    return np.asarray(np.array([learned.values.get(f"{prefix} {name}", missing) for name in words.names])[words.places])


def parts_of(features: Features, learned: Learned) -> dict[str, Array]:
    """Seconds of a step by part: kernels by kind, waiting for the host, optimizer, exchange. They add up to the step.

    Model: kernels in a row or the host's launches, whichever is longer; calls that wait; the optimizer; what backward
    does not hide of the exchange. All of it times what software costs.
    """
    seconds = {}
    half = np.where(features.units.equal("half"), lookup(learned, "generation half", features.generation), 1.0)
    device = lookup(learned, "generation", features.generation) * half
    for place, kind in enumerate(KINDS):
        multiple = lookup(learned, _taught_by(kind), features.units)
        if kind == "convolution":
            multiple = multiple * np.where(features.planes, lookup(learned, "planes", features.units), 1.0)
            multiple = multiple * np.where(features.dilated, lookup(learned, "dilated", features.units), 1.0)
        seconds[kind] = features.kinds[:, place] * multiple * device
    launch = lookup(learned, "host", features.stack, learned.values["host torch"])
    kernels = np.sum(list(seconds.values()), axis=0)
    host = features.launches * launch
    both = (kernels**BLEND + host**BLEND) ** (1 / BLEND)
    waiting = features.waiting_calls * learned.values["waiting call"]
    body = both + waiting
    exchange = features.exchange_seconds * lookup(learned, "path", features.path)
    hidden = learned.overlap * body * BACKWARD_SHARE
    memory = features.optimizer_seconds * learned.values["optimizer"]
    calls = features.optimizer_launches * launch * OPTIMIZER_LAUNCH_SHARE
    software = lookup(learned, "stack", features.stack)
    repeated = features.accumulation * software
    result = {kind: values * repeated for kind, values in seconds.items()}
    result["host"] = (both - kernels + waiting) * repeated
    # A host that waits for each tensor's kernels is never ahead of them.
    waited = features.optimizer_waits * learned.values["waiting call"]
    result["optimizer"] = np.where(waited > 0, memory + calls + waited, np.maximum(memory, calls)) * software
    result["exchange"] = np.maximum(exchange - hidden, exchange * features.last_bucket) * software
    return result


def _taught_by(kind: str) -> str:
    """Fused attention and recurrent layers are as well known as products."""
    return "matmul" if kind in ("attention", "recurrent") else kind


def step_seconds(features: Features, learned: Learned) -> Array:
    """Seconds of a step of each training."""
    return np.asarray(np.sum(list(parts_of(features, learned).values()), axis=0))
