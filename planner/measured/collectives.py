"""Seconds of a collective over any group: the measured curve where there is one, else the nearest one carried over.

Carrying over follows the ring: a collective of n ranks takes steps that grow with n and moves (n-1)/n of the tensor; an
all-reduce does so twice at any size, which cancels. Where the group leaves the node, its slowest link sets the pace.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.errors import InputError
from profiles.laws.curves import link_seconds
from profiles.machines.profile import Collective, LinkCurve, MachineProfile

# Share of a two-rank collective's latency that each further pair of ring steps adds: 45, 53 and 77 us measured for
# all-reduces of 2, 4 and 8 A100 over NVLink (vTrain's published tables).
LATENCY_GROWTH = 0.12
# Assumed for a group size or span that was not measured itself.
CARRIED_ERROR_FRACTION = 0.35


@dataclass(frozen=True, slots=True)
class Group:
    """A group of ranks: how many, and how many of them share a node."""

    size: int
    inside: int


def group_of(degree: int, stride: int, devices_per_node: int) -> Group:
    """The group of `degree` ranks that lie `stride` apart on nodes of `devices_per_node`."""
    inside = max(1, min(degree, devices_per_node // stride)) if stride < devices_per_node else 1
    return Group(degree, inside)


def collective_seconds(
    machine: MachineProfile, collective: Collective, num_bytes: ArrayLike, group: Group
) -> tuple[NDArray[np.float64], float]:
    """Seconds to run `collective` on `num_bytes` (as LinkCurve counts them), and the error fraction of that number.

    Shapes: any shape of bytes; the seconds have the same. A group of one takes no time.
    Ignores: other traffic on the same links.
    """
    if group.size == 1:
        return np.zeros_like(np.asarray(num_bytes, dtype=np.float64)), 0.0
    curve, carried = _curve(machine, collective, group)
    return link_seconds(curve, num_bytes), max(curve.error_fraction, CARRIED_ERROR_FRACTION if carried else 0.0)


def _curve(machine: MachineProfile, collective: Collective, group: Group) -> tuple[LinkCurve, bool]:
    span = "node" if group.inside == group.size else "network"
    known = [link for link in machine.links if link.collective == collective and link.span == span]
    exact = [link for link in known if link.group_size == group.size]
    if exact and (span == "node" or group.inside == 1):
        return exact[0], False
    if not known:
        raise InputError(f"machine {machine.name} has no {collective} measured over the {span}: profile it there")
    base = min(known, key=lambda link: abs(link.group_size - group.size))
    rate = base.bytes_per_second * _volume(collective, base.group_size)
    if span == "network" and group.inside > 1:
        # Each member has its own network interface; together they feed a ring that runs inside the node as well.
        inner = [link for link in machine.links if link.collective == collective and link.span == "node"]
        fast = max((link.bytes_per_second * _volume(collective, link.group_size) for link in inner), default=rate)
        rate = min(fast, rate * group.inside)
    return LinkCurve(
        collective=collective,
        group_size=group.size,
        span=span,  # type: ignore[arg-type]
        latency_seconds=base.latency_seconds * _latency(group.size) / _latency(base.group_size),
        bytes_per_second=rate / _volume(collective, group.size),
        error_fraction=base.error_fraction,
        origin=base.origin,
    ), True


def _volume(collective: Collective, size: int) -> float:
    """Bytes that one rank sends over one link in one turn of the ring, as a fraction of the tensor."""
    return 1.0 if collective == "send_receive" else (size - 1) / size


def _latency(size: int) -> float:
    return 1 - LATENCY_GROWTH + LATENCY_GROWTH * (size - 1)


def exposed_seconds(machine: MachineProfile, communication: ArrayLike, compute: ArrayLike) -> NDArray[np.float64]:
    """Seconds that `communication` adds to `compute` which runs at the same time, each slowing the other.

    Model: while both run, compute takes 1 + a and communication 1 + b times as long; whichever is left goes on alone.
    Shapes: the arguments broadcast.
    """
    a = machine.overlap.compute_slowdown_fraction
    b = machine.overlap.communication_slowdown_fraction
    communication, compute = np.asarray(communication, dtype=np.float64), np.asarray(compute, dtype=np.float64)
    slowed_communication, slowed_compute = communication * (1 + b), compute * (1 + a)
    hidden = slowed_communication <= slowed_compute
    added_to_compute = slowed_communication * a / (1 + a)
    added_to_communication = communication + slowed_compute * b / (1 + b) - compute
    return np.asarray(np.where(hidden, added_to_compute, added_to_communication))
