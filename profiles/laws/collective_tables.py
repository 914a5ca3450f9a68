"""Published tables of collectives: the points, and curves of eight knots through each. Torch-free."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.catalog import CATALOG
from profiles.errors import UnknownNameError
from profiles.machines.profile import Collective

Array = NDArray[np.float64]
Key = tuple[str, str, int, int]
TABLES = CATALOG / "measured" / "collectives.csv"
MICROSECOND = 1e-6
KNOTS = 8
# Reduction in the network, and kernels of expert dispatch: other operations than the collective that they stand under.
SPECIAL = ("CollNet", "SHARP", "DeepEP")


@dataclass(frozen=True, slots=True)
class Curve:
    """A measured collective: bytes (ascending) and seconds of its points."""

    num_bytes: tuple[float, ...]
    seconds: tuple[float, ...]


@lru_cache(maxsize=1)
def measured_tables() -> dict[Key, Curve]:
    """Every published table by (hardware, collective, GPUs, nodes): at each size the fastest algorithm, all points.

    Source: catalog/measured/collectives.csv, whose rows name theirs. Ignores: special kernels, points without a time.
    """
    points: dict[Key, dict[float, float]] = {}
    with TABLES.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["algorithm"].startswith(SPECIAL) or not row["time_us"]:
                continue
            table = points.setdefault((row["hardware"], row["collective"], int(row["gpus"]), int(row["nodes"])), {})
            size, seconds = float(row["bytes"]), float(row["time_us"]) * MICROSECOND
            table[size] = min(seconds, table.get(size, seconds))
    return {key: Curve(tuple(sorted(table)), tuple(table[b] for b in sorted(table))) for key, table in points.items()}


def with_knots(curve: Curve, num_knots: int = KNOTS) -> Curve:
    """The `num_knots` points of `curve`, its ends among them, that pass closest to the others.

    Model: least sum of absolute errors in the logarithm, by dynamic programming over the last knot but one.
    """
    sizes, seconds = np.log(curve.num_bytes), np.log(curve.seconds)
    count = len(sizes)
    if count <= num_knots:
        return curve
    off = np.full((count, count), np.inf)
    for i in range(count):
        for j in range(i + 1, count):
            between = np.interp(sizes[i : j + 1], sizes[[i, j]], seconds[[i, j]])
            off[i, j] = np.abs(between - seconds[i : j + 1]).sum()
    best, before = off[0], []
    for _ in range(num_knots - 2):
        reached = best[:, None] + off
        before.append(np.argmin(reached, axis=0))
        best = reached.min(axis=0)
    kept = [count - 1]
    for step in reversed(before):
        kept.append(int(step[kept[-1]]))
    kept = sorted({0, *kept})
    return Curve(tuple(curve.num_bytes[i] for i in kept), tuple(curve.seconds[i] for i in kept))


def along(curve: Curve, num_bytes: ArrayLike) -> Array:
    """Seconds at `num_bytes` between the knots, in logarithms; below the first its latency, above the last its rate."""
    amount = np.asarray(num_bytes, dtype=np.float64)
    first, last = curve.num_bytes[0], curve.num_bytes[-1]
    inner = np.exp(np.interp(np.log(np.clip(amount, first, last)), np.log(curve.num_bytes), np.log(curve.seconds)))
    return np.asarray(inner * np.maximum(amount / last, 1.0))


def measured_seconds(hardware: str, collective: Collective, gpus: int, nodes: int, num_bytes: ArrayLike) -> Array:
    """Seconds of a collective on a machine of the published tables, along eight knots of its table.

    `num_bytes` is the whole tensor, as in `interconnect.collective_seconds`.
    Raises: UnknownNameError with the machine's tables where this group was not measured.
    """
    return along(_knots((hardware, collective, gpus, nodes)), num_bytes)


@lru_cache(maxsize=256)
def _knots(key: Key) -> Curve:
    tables: dict[Key, Curve] = measured_tables()
    machines = {known[0] for known in tables}
    if key[0] not in machines:
        raise UnknownNameError("measured machine", key[0], machines)
    if key not in tables:
        own = [_title(known) for known in tables if known[0] == key[0]]
        raise UnknownNameError("measured collective", _title(key), own)
    return with_knots(tables[key])


def _title(key: Key) -> str:
    hardware, collective, gpus, nodes = key
    return f"{hardware}: {collective} of {gpus} GPUs in {nodes} nodes"
