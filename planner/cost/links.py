"""Seconds of messages between ranks: by the law of collectives on links off a data sheet."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from planner.cost.job import Jobs
from planner.cost.unit_costs import Links
from profiles.laws.collectives import Collective, Fabric, LinkConstants, collective_seconds
from profiles.models.transformer import Array, Flags
from profiles.units import GB

# As many PCIe cards go with one processor; more are halved over two (assumed).
ONE_PROCESSOR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetLinks:
    """Messages by the law of profiles/laws/collectives, with its shipped `constants` unless others are given."""

    fabric: Fabric
    constants: LinkConstants | None = None

    def seconds(
        self, collective: Collective, num_bytes: Array, size: Array, inside: Array, stride: Array | float = 1.0
    ) -> Array:
        """Seconds of a collective, as `Links` has it."""
        return collective_seconds(
            collective, num_bytes, size, inside, self.fabric, constants=self.constants, stride=stride
        )

    def at(self, where: Flags) -> SheetLinks:
        """The links of some jobs."""
        columns: dict[str, Any] = {
            field.name: None if getattr(self.fabric, field.name) is None else getattr(self.fabric, field.name)[where]
            for field in fields(Fabric)
        }
        return SheetLinks(fabric=Fabric(**columns), constants=self.constants)


def links_of(jobs: Jobs, constants: LinkConstants | None = None) -> Links:
    """What joins the ranks of jobs; `constants` take the place of those shipped."""
    return jobs.source.links(jobs) if jobs.source else SheetLinks(fabric=fabric_of(jobs), constants=constants)


def fabric_of(jobs: Jobs) -> Fabric:
    """The links of `jobs`: bandwidths of the job where it states them, the rest from its device. Shapes: per job."""
    label = jobs.device.read(lambda device: device.link_gb_per_second * GB)
    peer = jobs.device.read(lambda device: device.peer_gb_per_second * GB)
    return Fabric(
        fast_bytes_per_second=jobs.fast_bytes_per_second,
        # A pair's share of the total stays what it is on the data sheet.
        p2p_bytes_per_second=jobs.fast_bytes_per_second * np.where(label > 0, peer / np.maximum(label, 1.0), 1.0),
        network_bytes_per_second=jobs.network_bytes_per_second,
        in_switch=jobs.device.read(lambda device: float(device.in_switch)).astype(bool),
        network_latency_seconds=jobs.network_latency_seconds,
        # Servers of many PCIe cards have two processors, of few one.
        root_ranks=np.where((label > 0) | (jobs.devices_per_node <= ONE_PROCESSOR), np.inf, jobs.devices_per_node / 2),
    )
