"""Fits the constants of profiles/laws/collectives to the published tables: `python -m profiles.laws.fit_collectives`.

Sources of the tables, as their column `source` names them, are repositories at github.com: nccl-tests results, and
all-gathers of torch timed by the host (Dazz993/Mist). The least machine weighs as much as the one measured most.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from profiles.files import write_text
from profiles.laws.collective_tables import MICROSECOND, measured_tables
from profiles.laws.collectives import (
    CONSTANTS,
    Array,
    Fabric,
    LinkConstants,
    collective_seconds,
    link_constants,
)
from profiles.machines.profile import COLLECTIVES
from profiles.units import GB, KIB


class Machine(NamedTuple):
    """One machine of the tables; rates in GB/s off the data sheet, the network as the source states it.

    `family` is held out together. `fast` are a device's links, `pair` what one peer sees of them, `card` its share of
    the network cards; `in_switch` says whether the switch reduces, `domain` how many devices it joins (0: a node's).
    """

    family: str
    fast: float
    pair: float
    card: float
    in_switch: bool
    domain: int = 0
    infiniband: bool = False


MACHINES = {
    "A100-SXM4 8-GPU node": Machine("A100 node", 300, 300, 25, False),
    "A100-SXM4 DGX Sophia 8-GPU node": Machine("A100 InfiniBand", 300, 300, 25, False, infiniband=True),
    "A100-SXM4-40GB Polaris 4-GPU node": Machine("A100 Slingshot", 300, 100, 12.5, False),
    "A100-SXM4-40GB Sirius 4-GPU node": Machine("A100 Slingshot", 300, 100, 12.5, False),
    "A100-SXM4-40GB p4d": Machine("A100 p4d", 300, 300, 6.25, False),
    "B200-SXM cluster": Machine("B200 InfiniBand", 900, 900, 50, True, infiniband=True),
    "B200-SXM p6-b200": Machine("B200 EFA", 900, 900, 50, True),
    "GB200 NVL72": Machine("GB200", 900, 900, 50, True, 72, infiniband=True),
    "GB200 2x NVL72": Machine("GB200", 900, 900, 50, True, 72, infiniband=True),
    "GB200 20x NVL72": Machine("GB200", 900, 900, 50, True, 72, infiniband=True),
    "GH200 Alps 4-GPU node": Machine("GH200 Slingshot", 450, 150, 25, False),
    "H100-SXM 8-GPU node": Machine("H100 node", 450, 450, 50, True),
    "H100-SXM GCP a3-megagpu": Machine("H100 TCPXO", 450, 450, 25, True),
    "H100-SXM cluster": Machine("H100 InfiniBand", 450, 450, 50, True, infiniband=True),
    "H200-SXM 8-GPU node": Machine("H200 node", 450, 450, 50, True),
    "H200-SXM p5en": Machine("H200 EFA", 450, 450, 50, True),
    "MI300X 8-GPU node": Machine("MI300X node", 448, 64, 50, False),
    "V100-SXM2-16GB p3": Machine("V100 p3", 150, 50, 3.125, False),
}
# Machines whose network is not what its data sheet says, or not stated: p4d passes 88 of 400 Gbit/s per node, on p3 it
# is one of two sizes. Only their groups within a node count.
WITHIN_NODES_ONLY = ("A100-SXM4-40GB p4d", "V100-SXM2-16GB p3")
# Parts of a cube mesh have other links than the whole; pairs were even measured above the two links that they share.
CUBE_MESHES, WHOLE_NODE = ("V100-SXM2-16GB p3",), 8
# Seven times slower than the same machine on 256 nodes.
CONGESTED = {("A100-SXM4-40GB Polaris 4-GPU node", name, 128) for name in ("all_reduce", "all_to_all")}
# Rings of messages over many nodes congest on one machine's network; a pipeline sends between two.
MESSAGE_NODES = 4
SMALLEST_BYTES, LARGE_BYTES, SMALL_WEIGHT = KIB, 256 * KIB, 0.35
# Lowest, expected, highest. The all-to-all's decay is held to what kernels of expert dispatch show, which keep 39 of 50
# GB/s over 32 nodes of InfiniBand (DeepEP rows of the table); Slingshot's is 0.3, and no run of training was on it.
BOUNDS: dict[str, tuple[float, float, float]] = {
    "ring_fraction": (0.6, 0.79, 0.9),
    "pair_loss": (0.0, 0.15, 0.4),
    "tree_fraction": (0.2, 0.4, 0.8),
    "switch_fraction": (0.4, 0.62, 0.9),
    "switch_decay": (0.0, 0.05, 0.2),
    "message_fraction": (0.5, 0.72, 0.95),
    "network_fraction": (0.6, 0.92, 1.0),
    "network_message_fraction": (0.5, 0.87, 1.0),
    "network_all_to_all_fraction": (0.4, 0.8, 1.0),
    "network_decay": (0.0, 0.02, 0.2),
    "all_to_all_decay": (0.0, 0.03, 0.04),
    "fast_us": (5.0, 15.0, 50.0),
    "hop_us": (0.2, 1.0, 5.0),
    "switch_us": (0.0, 5.0, 30.0),
    "network_us": (3.0, 10.0, 40.0),
    "ethernet_us": (5.0, 16.0, 40.0),
    "ring_share": (0.05, 0.5, 2.0),
    "peer_share": (0.02, 0.3, 1.0),
    "message_share": (0.0, 0.5, 2.0),
    "call_us": (5.0, 30.0, 50.0),
    "fill_us": (0.0, 5.0, 50.0),
    "ramp_us": (20.0, 300.0, 2000.0),
    "network_fill": (0.0, 2.0, 8.0),
    "network_ramp_us": (20.0, 500.0, 5000.0),
}
PRIOR_WEIGHT, TOLERANCE, EVALUATIONS = 0.01, 0.1, 60

SOURCE = (
    "nccl-tests tables of the repositories named in measured/collectives.csv, each family of machines weighing the same"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Measured points, in columns; `weight` makes families equal, and tables within a family.

    `machine`: the place of `hardware` among `MACHINES`.
    """

    hardware: NDArray[np.str_]
    machine: NDArray[np.int64]
    family: NDArray[np.str_]
    collective: NDArray[np.str_]
    size: Array
    nodes: Array
    num_bytes: Array
    seconds: Array
    weight: Array


def read_points() -> Points:
    """The comparable points of the shipped tables."""
    rows = [
        (*key, size, seconds)
        for key, curve in measured_tables().items()
        for size, seconds in zip(curve.num_bytes, curve.seconds, strict=True)
        if _comparable(*key) and size >= SMALLEST_BYTES
    ]
    names, collectives, gpus, nodes, num_bytes, seconds = zip(*rows, strict=True)
    families = np.array([MACHINES[name].family for name in names])
    tables = np.array(["|".join(map(str, row[:4])) for row in rows])
    importance = np.where(np.array(num_bytes) >= LARGE_BYTES, 1.0, SMALL_WEIGHT)
    weight = np.empty(len(rows))
    for family in np.unique(families):
        own = np.unique(tables[families == family])
        for table in own:
            weight[tables == table] = importance[tables == table] / importance[tables == table].sum() / len(own)
    return Points(
        hardware=np.array(names),
        machine=np.array([list(MACHINES).index(name) for name in names]),
        family=families,
        collective=np.array(collectives),
        size=np.array(gpus, dtype=np.float64),
        nodes=np.array(nodes, dtype=np.float64),
        num_bytes=np.array(num_bytes, dtype=np.float64),
        seconds=np.array(seconds, dtype=np.float64),
        weight=weight,
    )


def _comparable(hardware: str, collective: str, gpus: int, nodes: int) -> bool:
    if hardware not in MACHINES or (nodes > 1 and hardware in WITHIN_NODES_ONLY):
        return False
    if (hardware, collective, nodes) in CONGESTED or (hardware in CUBE_MESHES and gpus < WHOLE_NODE):
        return False
    return collective != "send_receive" or nodes <= MESSAGE_NODES


def fabric_of(machine: NDArray[np.int64], law: LinkConstants) -> Fabric:
    """The links of each point's machine, off the data sheet."""
    latency = np.where(_column("infiniband")[machine], law.network_us, law.ethernet_us)
    return Fabric(
        fast_bytes_per_second=_column("fast")[machine] * GB,
        p2p_bytes_per_second=_column("pair")[machine] * GB,
        network_bytes_per_second=_column("card")[machine] * GB,
        in_switch=_column("in_switch")[machine],
        network_latency_seconds=latency * MICROSECOND,
    )


@cache
def _column(field: str) -> NDArray[Any]:
    """A field of every machine."""
    return np.array([getattr(one, field) for one in MACHINES.values()])


def errors(points: Points, constants: LinkConstants | None = None) -> Array:
    """Logarithm of predicted over measured seconds of every point."""
    law, result = constants or link_constants(), np.empty(len(points.seconds))
    for collective in COLLECTIVES:
        own = points.collective == collective
        domains = _column("domain")[points.machine[own]]
        inside = np.minimum(points.size[own], np.where(domains > 0, domains, points.size[own] / points.nodes[own]))
        if collective == "send_receive":
            # Of nccl-tests' circle of neighbours the pair that spans two nodes is the slowest.
            inside = np.where(points.nodes[own] > 1, 1.0, 2.0)
        size = np.full(own.sum(), 2.0) if collective == "send_receive" else points.size[own]
        fabric = fabric_of(points.machine[own], law)
        predicted = collective_seconds(collective, points.num_bytes[own], size, inside, fabric, constants=law)
        result[own] = np.log(predicted / points.seconds[own])
    return result


def fit(points: Points, chosen: NDArray[np.bool_]) -> LinkConstants:
    """The constants of least weighted, robust relative error over the `chosen` points, near their priors where free."""
    low, prior, high = (np.array([bounds[i] for bounds in BOUNDS.values()]) for i in range(3))
    root = np.sqrt(np.where(chosen, points.weight, 0.0) / len(np.unique(points.family[chosen])))

    def residuals(unit: Array) -> Array:
        pulls = np.sqrt(PRIOR_WEIGHT) * (unit - (prior - low) / (high - low))
        found = errors(points, _constants(low + unit * (high - low)))
        # A robust loss on each point's error, then its weight: points of heavy machines are no more likely outliers.
        robust = np.sign(found) * np.sqrt(2 * TOLERANCE * (np.hypot(found, TOLERANCE) - TOLERANCE))
        return np.concatenate([root * robust, TOLERANCE * pulls])

    start = np.clip((prior - low) / (high - low), 0.02, 0.98)
    solution = least_squares(residuals, start, bounds=(0.0, 1.0), diff_step=1e-3, max_nfev=EVALUATIONS)
    return _constants(low + solution.x * (high - low))


def _constants(values: Array) -> LinkConstants:
    return LinkConstants(**dict(zip(BOUNDS, map(float, values), strict=True)), source="fit")


def held_out_errors(points: Points) -> Array:
    """Errors of every point under constants fitted without its machine and the machines of its family."""
    result = np.empty(len(points.seconds))
    for family in np.unique(points.family):
        own = points.family == family
        result[own] = errors(points, fit(points, ~own))[own]
    return result


def medians(points: Points, found: Array, smallest_bytes: float = LARGE_BYTES) -> dict[str, float]:
    """Median relative error of each machine over messages of at least `smallest_bytes`."""
    large = points.num_bytes >= smallest_bytes
    names = [str(name) for name in np.unique(points.hardware[large])]
    return {name: float(np.median(np.abs(np.expm1(found[large & (points.hardware == name)])))) for name in names}


def as_toml(constants: LinkConstants, in_sample: dict[str, float], held_out: dict[str, float]) -> str:
    """The catalogue file's text."""
    lines = ["# Written by `python -m profiles.laws.fit_collectives` from measured/collectives.csv."]
    lines += ["# Median error per machine, messages from 256 KiB: fitted, and fitted without the machine's family."]
    lines += [f"#   {name}: {in_sample[name]:.1%}, {held_out[name]:.1%}" for name in in_sample]
    lines += [f"{name} = {getattr(constants, name):.4f}" for name in BOUNDS]
    return "\n".join([*lines, f'source = "{SOURCE}"', ""])


def main() -> None:
    """Fit, write the catalogue file and print each machine's error, fitted and held out, for large and all messages."""
    points = read_points()
    constants = fit(points, np.ones(len(points.seconds), dtype=np.bool_))
    found, without = errors(points, constants), held_out_errors(points)
    write_text(CONSTANTS, as_toml(constants, medians(points, found), medians(points, without)))
    for title, smallest in (("from 256 KiB", LARGE_BYTES), ("of all sizes", SMALLEST_BYTES)):
        fitted, held_out = medians(points, found, smallest), medians(points, without, smallest)
        for name, error in fitted.items():
            count = int(((points.hardware == name) & (points.num_bytes >= smallest)).sum())
            sys.stdout.write(f"{title}: {name}: fitted {error:.1%}, held out {held_out[name]:.1%} of {count}\n")
        for word, values in (("fitted", fitted), ("held out", held_out)):
            spread = list(values.values())
            sys.stdout.write(f"{title}: {word}: median {np.median(spread):.1%}, mean {np.mean(spread):.1%}\n")


if __name__ == "__main__":
    main()
