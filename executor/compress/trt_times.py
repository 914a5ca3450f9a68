"""What `trtexec` writes about its runs, read back: times of each call, and of each layer. Torch-free.

Times are a list of calls, with milliseconds of the device (`computeMs`) and with the copies there and back
(`latencyMs`); layers are a list that begins with how many calls there were. Source: NVIDIA TensorRT, samples/common,
sampleReporting.cpp, as of versions 8 to 11.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from executor.compress.runtime_latency import RuntimeLatency
from profiles.errors import ArtifactError
from profiles.inputs import foreign

TENSORRT = "TensorRT"
WANTED = "give what trtexec wrote with --exportTimes=FILE"
# An hour: what takes longer is no latency.
LONGEST_MS = 3.6e6
NUM_SLOWEST = 5


def read_times(path: Path, version: str = "", precision: str = "as the file says") -> RuntimeLatency:
    """The latency in a file of times.

    Raises: ArtifactError where it is missing, or none.
    """
    entries = foreign.read_json(path, WANTED)
    if not isinstance(entries, list) or len(entries) < 2:
        raise ArtifactError(f"{path} has no list of at least two calls: {WANTED}")
    compute = [_milliseconds(entry, "computeMs", place, path) for place, entry in enumerate(entries)]
    whole = [_milliseconds(entry, "latencyMs", place, path) for place, entry in enumerate(entries)]
    low, middle, high = statistics.quantiles(compute, n=4)
    return RuntimeLatency(
        runtime=TENSORRT,
        version=version,
        precision=precision,
        latency_seconds=middle / 1000,
        spread_fraction=max(0.0, high - low) / middle,
        num_timed=len(entries),
        with_copies_seconds=statistics.median(whole) / 1000,
    )


def _milliseconds(entry: Any, key: str, place: int, path: Path) -> float:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, int | float) or value is True or not 0 < value <= LONGEST_MS:
        raise ArtifactError(
            f"{path}: call {place} has {key} {foreign.shown(value)}, which is not a time in milliseconds: {WANTED}"
        )
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def slowest_layers(path: Path) -> tuple[tuple[str, float], ...]:
    """The layers of a file of `--exportProfile` that take longest, with their seconds in one call.

    Raises: ArtifactError where it is missing, or none; names of layers that hold quotes make it no JSON.
    """
    wanted = "give what trtexec wrote with --exportProfile=FILE"
    entries = foreign.read_json(path, wanted)
    times = [
        (foreign.shown(entry["name"])[1:-1], float(entry["averageMs"]) / 1000)
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and "name" in entry and _is_number(entry.get("averageMs"))
    ]
    if not times:
        raise ArtifactError(f"{path} has no list of layers: {wanted}")
    return tuple(sorted(times, key=lambda pair: -pair[1])[:NUM_SLOWEST])
