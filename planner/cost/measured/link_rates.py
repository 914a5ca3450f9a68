"""How fast the links of a measured machine are, as a data sheet has it: the rate at which the law says as much."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.cost.measured.links import inside_of
from profiles.laws.collectives import Fabric, collective_seconds
from profiles.machines.devices import Device
from profiles.machines.profile import Collective, LinkCurve, MachineProfile
from profiles.models.transformer import Array

# Rates that are tried, in bytes per second: between a modem's and more than any link has.
RATES = np.geomspace(1e4, 1e14, 4001)
# Of a node what all its links pass on; between nodes single messages first: they go through one card each.
TELLING: dict[str, tuple[Collective, ...]] = {
    "node": ("all_gather", "reduce_scatter", "all_reduce"),
    "network": ("send_receive", "all_to_all", "all_gather", "reduce_scatter", "all_reduce"),
}


def fast_rate(machine: MachineProfile, device: Device) -> float:
    """Bytes per second of the links within a node of a device's kind; 0 where none was measured."""
    share = device.peer_gb_per_second / device.link_gb_per_second if device.link_gb_per_second else 1.0

    def fabric(rates: Array) -> Fabric:
        return Fabric(
            fast_bytes_per_second=rates,
            p2p_bytes_per_second=rates * share,
            network_bytes_per_second=rates,
            in_switch=np.asarray(device.in_switch),
        )

    return _rate(machine, "node", fabric)


def card_rate(machine: MachineProfile, device: Device, fast: float) -> float:
    """Bytes per second of a rank's card, beside links in the node that have `fast`; 0 where none was measured."""

    def fabric(rates: Array) -> Fabric:
        return Fabric(
            fast_bytes_per_second=np.asarray(fast),
            p2p_bytes_per_second=np.asarray(fast),
            network_bytes_per_second=rates,
            in_switch=np.asarray(device.in_switch),
        )

    return _rate(machine, "network", fabric)


def _rate(machine: MachineProfile, span: str, fabric: Callable[[Array], Fabric]) -> float:
    """The rate at which the law says what the longest message of the most telling curve took."""
    curve = _telling(machine, span)
    if curve is None:
        return 0.0
    longest = max(curve.samples, key=lambda sample: sample.dims)
    law = collective_seconds(
        curve.collective, longest.dims[0], curve.group_size, inside_of(curve, machine), fabric(RATES)
    )
    # More is never slower: the first of the rates that are as fast as what was measured.
    return float(np.exp(np.interp(-np.log(longest.seconds), -np.log(law), np.log(RATES))))


def _telling(machine: MachineProfile, span: str) -> LinkCurve | None:
    for collective in TELLING[span]:
        known = [link for link in machine.links if (link.collective, link.span) == (collective, span) and link.samples]
        if known:
            return max(known, key=lambda link: link.group_size)
    return None
