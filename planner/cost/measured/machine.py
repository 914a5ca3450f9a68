"""A machine that was measured as values that the laws read: a device, software on it, what was learned of both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from planner.cost.axes.data import Exchange, Sharded, StageParameters
from planner.cost.factors import Factors, Learned, load_learned
from planner.cost.job import Jobs
from planner.cost.links import SheetLinks, fabric_of
from planner.cost.measured.exchange import TimedExchanges
from planner.cost.measured.kernels import OnMachine, TracedKernels
from planner.cost.measured.link_rates import card_rate, fast_rate
from planner.cost.measured.links import MeasuredLinks, inside_of
from planner.cost.software_time import TimeRules
from planner.cost.unit_costs import Kernels, Links
from profiles.errors import UnknownNameError
from profiles.machines.devices import HOST_MEMORY_GB, Device, find_device
from profiles.machines.profile import Collective, MachineProfile
from profiles.machines.stacks import Stack
from profiles.units import GB, GIB

TERA = 1e12
# Of what two ranks pass each other in a collective, as a share of its tensor.
PAIR_SHARE: dict[Collective, float] = {"all_reduce": 1.0, "all_gather": 0.5, "reduce_scatter": 0.5}
FULL_PRECISIONS = ("fp32", "tf32")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMachine:
    """A machine that was measured as a source of unit costs, for one traced model.

    `factors` are what is known of it before any correction, as its timings are; `knows_network` as MeasuredLinks.
    """

    traced: OnMachine
    factors: Factors
    knows_network: bool

    def kernels(self, jobs: Jobs) -> Kernels:
        """Kernels of the model's layers, timed or summed."""
        return TracedKernels(jobs=jobs, traced=self.traced)

    def links(self, jobs: Jobs) -> MeasuredLinks:
        """Measured curves, and the law scaled to them."""
        law = SheetLinks(fabric=fabric_of(jobs))
        return MeasuredLinks(machine=self.traced.machine, law=law, knows_network=self.knows_network)

    def exchange(self, jobs: Jobs, rules: TimeRules, links: Links, held: StageParameters) -> Exchange:
        """The exchange of gradients, held to timings of it."""
        return self._exchanges(jobs).exchange(jobs, rules, links, held)

    def sharded(self, jobs: Jobs, rules: TimeRules, links: Links) -> Sharded:
        """What ZeRO stage 3 sends, held to timings of it."""
        return self._exchanges(jobs).sharded(jobs, rules, links)

    def _exchanges(self, jobs: Jobs) -> TimedExchanges:
        traced = self.traced
        kinds = traced.layers.kinds
        return TimedExchanges(
            machine=traced.machine,
            links=self.links(jobs),
            codec=traced.codec_name,
            factors=self.factors,
            tensors={kind: layer.num_parameter_tensors for kind, layer in kinds.items()},
            tensors_per_parameter=traced.layers.tensors_per_parameter,
        )


def device_of(machine: MachineProfile) -> Device:
    """The machine's device: as the catalogue has it where it is shipped, with the rates and links measured here."""
    shipped = _shipped(machine)
    peak = {precision: rate / TERA for precision, rate in machine.peak_flops_per_second.items()}
    own: dict[str, Any] = {
        "name": machine.name,
        "title": machine.device_name,
        "memory_gib": machine.memory_bytes / GIB,
        "memory_gb_per_second": machine.memory_bytes_per_second / GB,
        "devices_per_node": machine.devices_per_node,
        "compute_slowdown_fraction": machine.overlap.compute_slowdown_fraction,
        "communication_slowdown_fraction": machine.overlap.communication_slowdown_fraction,
        "price_per_hour": machine.price_per_hour,
    }
    if shipped is not None:
        if machine.price_per_hour is None:
            own["price_per_hour"] = shipped.price_per_hour
        fast = fast_rate(machine, shipped) / GB or shipped.link_gb_per_second
        return replace(
            shipped,
            **own,
            peak_tflops=shipped.peak_tflops | peak,
            **_links(shipped, fast, card_rate(machine, shipped, fast * GB) / GB),
        )
    link = _link_rate(machine, "node") / GB
    network = _link_rate(machine, "network") / GB
    return Device(
        **own,
        aliases=(),
        generation="ampere",
        num_multiprocessors=1,
        memory_label_gb=machine.memory_bytes / GB,
        peak_tflops=peak,
        achievable_tflops=peak,
        kernel_latency_us=0.0,
        host_launch_us=machine.launch_seconds * 1e6,
        vector_tflops=min(peak.values()),
        fast_domain=machine.devices_per_node,
        in_switch=False,
        link_gb_per_second=link or network,
        peer_gb_per_second=link or network,
        link_latency_us=0.0,
        host_gb_per_second=machine.memory_bytes_per_second / GB,
        # CPUs are their own host; of other hosts' memory nothing was measured.
        host_memory_gb=machine.memory_bytes / GB if machine.device_kind == "cpu" else HOST_MEMORY_GB,
        network_gb_per_second=network or link,
        network_latency_us=0.0,
        power_watts=0.0,
        sources=machine.sources,
    )


def is_shipped(machine: MachineProfile) -> bool:
    """Whether the catalogue has the machine's device, and so what its network usually is."""
    return _shipped(machine) is not None


def _shipped(machine: MachineProfile) -> Device | None:
    if machine.device_kind == "cpu":
        return None
    try:
        return find_device(machine.device_name, machine.memory_bytes / GIB)
    except UnknownNameError:
        return None


def _links(shipped: Device, fast: float, card: float) -> dict[str, Any]:
    """The rates of a shipped device's links as they were measured; what a pair sees stays the share that it is."""
    if not shipped.link_gb_per_second:
        return {"network_gb_per_second": card or shipped.network_gb_per_second}
    return {
        "link_gb_per_second": fast,
        "peer_gb_per_second": fast * shipped.peer_gb_per_second / shipped.link_gb_per_second,
        "network_gb_per_second": card or shipped.network_gb_per_second,
    }


def _link_rate(machine: MachineProfile, span: str) -> float:
    """Bytes per second that a rank passes on in the fastest collective measured; 0 where none was.

    Between nodes all cards of a node pass on a ring together.
    """
    rates = [
        link.bytes_per_second
        * 2
        * PAIR_SHARE[link.collective]
        * (1 - 1 / link.group_size)
        / (inside_of(link, machine) if span == "network" else 1.0)
        for link in machine.links
        if link.span == span and link.collective in PAIR_SHARE
    ]
    return max(rates, default=0.0)


def stack_on(stack: Stack, machine: MachineProfile, precision: str) -> Stack:
    """The software as it behaves on a machine: FSDP2 overlaps on GPUs alone, and a CPU has neither context nor holes.

    Weights travel as wide as passes compute; kernels of the host are those measured.
    """
    width = 4.0 if precision in FULL_PRECISIONS else 2.0
    is_cpu = machine.device_kind == "cpu"
    time = replace(
        stack.time,
        parameter_message_bytes=width,
        pipeline_action_us=machine.pipeline_action_seconds * 1e6,
        overlaps_shards=not is_cpu,
        host_step_ms=0.0 if is_cpu else stack.time.host_step_ms,
    )
    if not is_cpu:
        return replace(stack, time=time)
    memory = replace(
        stack.memory,
        bucket_mib=0.0, workspaces=0.0, routed_workspaces=0.0, vocabulary_slack=0.0, logit_slack=0.0,
        working_slack=0.0, context_gib=0.0, communicator_mib=0.0,
    )  # fmt: skip
    return replace(stack, time=time, memory=memory)


def learned_of(machine: MachineProfile) -> Learned:
    """What is known of kernels and links in the midst of training: on CPUs what was measured there, all in its curves.

    On GPUs what published runs taught of communication, which no microbenchmark tells; layers were timed as they are.
    """
    taught = load_learned()
    own = replace(
        taught.factors,
        matmul=1.0,
        attention=1.0,
        traffic_fraction=1.0,
        optimizer_fraction=1.0,
        host=1.0,
        compute_slowdown=machine.overlap.compute_slowdown_fraction,
        comm_slowdown=machine.overlap.communication_slowdown_fraction,
    )
    if machine.device_kind == "cpu":
        names = ("tensor_comm", "data_comm", "expert_comm", "pipeline_comm", "context_comm")
        own = replace(own, **dict.fromkeys(names, 1.0), straggling=0.0, waiting_us=0.0)
    return replace(taught, factors=own, everyone={}, groups={}, stacks={}, products={})
