"""A question about a machine that was measured, and about larger ones of its kind: the same setting as any other."""

from __future__ import annotations

from dataclasses import replace

from planner.cost.measured.corrections import Corrections
from planner.cost.measured.kernels import OnMachine
from planner.cost.measured.machine import MeasuredMachine, device_of, is_shipped, learned_of, stack_on
from planner.space.question import Setting, setting
from planner.space.traced_setting import layers_of
from profiles.laws.collectives import infiniband_seconds
from profiles.machines.clusters import Cluster
from profiles.machines.devices import MICROSECOND, Device
from profiles.machines.profile import MachineProfile
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.profile import ModelProfile
from profiles.models.sizes import sizes_of_trace

# Seconds of a hop between hosts that were not measured apart: what a network card and the kernel take.
HOST_HOP_US = 30.0


def measured_setting(
    machine: MachineProfile,
    model: ModelProfile,
    num_devices: int,
    global_batch_size: int,
    sequence_length: int,
    precision: str,
    cluster: Cluster | None = None,
    codec: str = "none",
    corrections: Corrections | None = None,
) -> Setting:
    """A setting on devices of `machine`, in nodes of `cluster` or as many to a node as were measured.

    CPU ranks beyond those measured share the memory of its host. `corrections` are what runs on it taught.
    Raises: InputError where those are of another machine.
    """
    per_host = ranks_on_host(machine, num_devices, cluster)
    device, learned = _sharing(device_of(machine), machine, per_host), learned_of(machine)
    if corrections is not None:
        corrections.check(machine)
        learned = corrections.on(learned)
    is_cpu = machine.device_kind == "cpu"
    sizes = sizes_of_trace(model, precision, sequence_length)
    layers = layers_of(sizes, model, precision)
    published = device if is_shipped(machine) else None
    per_node = cluster.devices_per_node if cluster else max(machine.devices_per_node, per_host)
    traced = OnMachine(machine=machine, layers=layers, codec_name=codec, device=published)
    at = setting(
        sizes, device, num_devices, global_batch_size, sequence_length, THIS_PROGRAM, precision, cluster, codec
    )
    return replace(
        at,
        devices_per_node=per_node,
        fast_domain=max(1, cluster.fast_domain if cluster else per_node),
        stack=stack_on(at.stack, machine, precision),
        # Layers were measured with the attention they have.
        attention_kernel="flash2",
        overlaps_tensor=False,
        network_latency_seconds=_hop_seconds(cluster, is_cpu),
        source=MeasuredMachine(
            traced=traced,
            factors=learned_of(machine).factors,
            knows_network=cluster is not None or published is not None,
        ),
        learned=learned,
        measured=traced,
        corrections=corrections,
    )


def ranks_on_host(machine: MachineProfile, num_devices: int, cluster: Cluster | None) -> int:
    """How many ranks share a host; GPUs have as many as were measured, CPUs take all where one host was measured."""
    if machine.device_kind != "cpu":
        return machine.devices_per_node
    if cluster is not None:
        return min(cluster.devices_per_node, num_devices)
    return num_devices if machine.devices_per_node == machine.num_devices else machine.devices_per_node


def _sharing(device: Device, machine: MachineProfile, ranks: int) -> Device:
    """The device where so many ranks share a host: its memory is that of the host."""
    share = min(1.0, machine.devices_per_node / ranks)
    return replace(device, memory_gib=device.memory_gib * share, host_memory_gb=device.host_memory_gb * share)


def _hop_seconds(cluster: Cluster | None, is_cpu: bool) -> float:
    if cluster is not None:
        return cluster.network_latency_us * MICROSECOND
    return HOST_HOP_US * MICROSECOND if is_cpu else infiniband_seconds()
