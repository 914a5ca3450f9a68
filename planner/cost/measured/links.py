"""Seconds of messages on links that were measured; groups that were not, by the published law scaled to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.cost.links import SheetLinks
from profiles.errors import InputError
from profiles.laws.collectives import SLOWEST_BYTES_PER_SECOND
from profiles.laws.curves import link_seconds
from profiles.machines.profile import Collective, LinkCurve, MachineProfile
from profiles.models.transformer import Array, Flags

# Share of a two-rank collective's latency that each further pair of ring steps adds: 45, 53 and 77 us measured for
# all-reduces of 2, 4 and 8 A100 over NVLink (vTrain's published tables).
LATENCY_GROWTH = 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLinks:
    """The links of a machine; `law` is the published one on links as fast, `knows_network` whether it says how fast.

    Model: where a group of as many ranks was measured, as many of them on a node, its curve, on GPUs bent between
    samples as the law is, which are four times apart; else the law, times what the nearest group that was measured
    takes over what the law says of it; on CPUs the law is gloo's ring. Messages longer than any measured take what the
    longest took, times what the law says of both. Where no group was measured that leaves the node, the law alone, on
    the network that is named.
    """

    machine: MachineProfile
    law: SheetLinks
    knows_network: bool

    def seconds(
        self, collective: Collective, num_bytes: Array, size: Array, inside: Array, stride: Array | float = 1.0
    ) -> Array:
        """Seconds of a collective, as `Links` has it; groups were measured whose ranks are neighbours.

        Raises: InputError where groups leave the node, none was measured that does, and no network is named.
        """
        amount, size, inside = np.broadcast_arrays(
            np.asarray(num_bytes, dtype=np.float64), np.asarray(size, dtype=np.float64), np.asarray(inside)
        )
        result = np.zeros(amount.shape)
        # As complex numbers, pairs are sorted many times faster than as rows.
        groups, index = np.unique((size + 1j * inside).ravel(), return_inverse=True)
        for number, (ranks, near) in enumerate(zip(groups.real, groups.imag, strict=True)):
            where = (index.reshape(-1) == number).reshape(amount.shape)
            if ranks > 1:
                result[where] = self._of_group(collective, amount[where], where, ranks, min(near, ranks))
        return result

    def of_one(self) -> MeasuredLinks:
        """The links of a single job: all jobs have those of the machine."""
        first = np.arange(len(self.law.fabric.network_bytes_per_second)) < 1
        return replace(self, law=self.law.at(first))

    def _of_group(self, collective: Collective, num_bytes: Array, where: Flags, size: float, inside: float) -> Array:
        curve = self.nearest(collective, size, inside)
        law = self.law.at(where)
        if curve is None:
            if inside >= size and not np.any(law.fabric.fast_bytes_per_second > SLOWEST_BYTES_PER_SECOND):
                raise InputError(
                    f"machine {self.machine.name} has no {collective} measured within a node: profile more ranks"
                )
            if inside < size and not self.knows_network:
                raise InputError(
                    f"machine {self.machine.name} has no {collective} measured over the network: profile it there, or "
                    "name the network with --cluster"
                )
            return law.seconds(collective, num_bytes, np.array(size), np.array(inside))
        group = float(curve.group_size), inside_of(curve, self.machine)
        known = np.minimum(num_bytes, max((sample.dims[0] for sample in curve.samples), default=np.inf))
        taken = self._along(curve, known)
        if group == (size, inside) and np.array_equal(known, num_bytes):
            return taken
        if self.machine.device_kind == "cpu":
            return np.asarray(link_seconds(curve, num_bytes) * _on_hosts(curve, num_bytes, size))
        here = law.seconds(collective, num_bytes, np.array(size), np.array(inside))
        there = law.seconds(collective, known, np.array(group[0]), np.array(group[1]))
        return np.asarray(taken * here / there)

    def _along(self, curve: LinkCurve, num_bytes: Array) -> Array:
        """Seconds of messages no longer than those that were measured of a group."""
        if self.machine.device_kind == "cpu" or not curve.samples:
            return link_seconds(curve, num_bytes)
        knots = np.array([sample.dims[0] for sample in curve.samples])
        seconds = np.maximum.accumulate([sample.seconds for sample in curve.samples])
        group = np.array(float(curve.group_size)), np.array(inside_of(curve, self.machine))
        law, amount = self.of_one().law, np.maximum(num_bytes, 1.0)
        ratios = np.log(seconds / law.seconds(curve.collective, knots, *group))
        return np.asarray(
            law.seconds(curve.collective, num_bytes, *group) * np.exp(np.interp(np.log(amount), np.log(knots), ratios))
        )

    def nearest(self, collective: Collective, size: float, inside: float) -> LinkCurve | None:
        """The measured curve of the group most like one of `size` ranks, `inside` of them on a node; None of none."""
        span = "node" if inside >= size else "network"
        known = [link for link in self.machine.links if link.collective == collective and link.span == span]

        def distance(link: LinkCurve) -> float:
            return float(abs(np.log(link.group_size / size)) + abs(np.log(inside_of(link, self.machine) / inside)))

        return min(known, key=distance, default=None)


def _on_hosts(curve: LinkCurve, num_bytes: Array, size: float) -> Array:
    """How many times longer a collective of gloo takes over another group than over the one measured.

    Model: a ring of n ranks takes steps that grow with n, and moves (n - 1)/n of the tensor, at the pace of its slowest
    link; ranks of one host share its card, so that as many of them do not pass more.
    """
    grown = _ring_latency(size) / _ring_latency(curve.group_size)
    moved = 1.0 if curve.collective == "send_receive" else (1 - 1 / size) / (1 - 1 / curve.group_size)
    transfer = num_bytes / curve.bytes_per_second
    before = np.maximum(curve.latency_seconds + transfer, np.finfo(float).tiny)
    return np.asarray((curve.latency_seconds * grown + transfer * moved) / before)


def _ring_latency(size: float) -> float:
    return 1 - LATENCY_GROWTH + LATENCY_GROWTH * (size - 1)


def inside_of(curve: LinkCurve, machine: MachineProfile) -> float:
    """How many ranks of a measured group share a node: neighbours, as many as there are; of few, one on each."""
    if curve.span == "node":
        return float(curve.group_size)
    return float(machine.devices_per_node if curve.group_size > machine.devices_per_node else 1)
