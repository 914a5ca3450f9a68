"""A question about a machine that was measured, and about larger ones of its kind: the same setting as any other."""

from __future__ import annotations

from dataclasses import replace

from planner.cost.factors import load_learned
from planner.cost.measured.corrections import Corrections
from planner.cost.measured.kernels import OnMachine, TracedLayers
from planner.cost.measured.machine import MeasuredMachine, device_of, is_shipped, learned_of, stack_on
from planner.cost.measured.on_sheet import OnSheet, TracedDevice
from planner.space.question import Setting, setting
from profiles.laws.collectives import infiniband_seconds
from profiles.machines.clusters import Cluster
from profiles.machines.devices import MICROSECOND, Device
from profiles.machines.profile import MachineProfile
from profiles.machines.stacks import THIS_PROGRAM, load_stack
from profiles.models.profile import ModelProfile
from profiles.models.sizes import ModelSizes, sizes_of_trace
from profiles.models.traced_sizes import TracedSizes
from profiles.units import GB

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
    layers = _layers(sizes, model, precision)
    published = device if is_shipped(machine) else None
    per_node = cluster.devices_per_node if cluster else max(machine.devices_per_node, per_host)
    traced = OnMachine(machine=machine, layers=layers, codec_name=codec, device=published)
    network = cluster.network_gb_per_second if cluster else device.network_gb_per_second
    return Setting(
        model=sizes,
        device=device,
        num_devices=num_devices,
        devices_per_node=per_node,
        fast_domain=max(1, cluster.fast_domain if cluster else per_node),
        network_bytes_per_second=network * GB,
        fast_bytes_per_second=(device.link_gb_per_second or device.peer_gb_per_second or network) * GB,
        stack=stack_on(load_stack(THIS_PROGRAM), machine, precision),
        precision=precision,
        attention_kernel="flash2",
        global_batch_size=global_batch_size,
        sequence_length=sequence_length,
        codec=codec,
        network_latency_seconds=_hop_seconds(cluster, is_cpu),
        source=MeasuredMachine(
            traced=traced,
            factors=learned.factors,
            knows_network=cluster is not None or published is not None,
        ),
        learned=learned,
        measured=traced,
        corrections=corrections,
    )


def with_traced(
    at: Setting,
    *,
    model: ModelProfile | None = None,
    machine: MachineProfile | None = None,
    precision: str | None = None,
    codec: str | None = None,
) -> Setting:
    """A setting of a traced model with another one, other measurements of its machine, precision or codec.

    Raises: KeyError where the model was not traced at the precision.
    """
    source, precision, codec = at.source, precision or at.precision, codec or at.codec
    assert isinstance(source, MeasuredMachine | TracedDevice)
    profile = model or source.traced.layers.model
    sizes = sizes_of_trace(profile, precision, at.sequence_length)
    layers = _layers(sizes, profile, precision)
    if isinstance(source, TracedDevice):
        traced = replace(source.traced, layers=layers)
        return replace(at, model=sizes, precision=precision, codec=codec, source=replace(source, traced=traced))
    machine = machine or source.traced.machine
    own = replace(source.traced, machine=machine, layers=layers, codec_name=codec)
    return replace(
        at,
        model=sizes,
        stack=stack_on(at.stack, machine, precision),
        precision=precision,
        codec=codec,
        source=replace(source, traced=own),
        measured=own,
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
    return replace(device, memory_gib=device.memory_gib * share)


def _hop_seconds(cluster: Cluster | None, is_cpu: bool) -> float:
    if cluster is not None:
        return cluster.network_latency_us * MICROSECOND
    return HOST_HOP_US * MICROSECOND if is_cpu else infiniband_seconds()


def traced_setting(
    model: ModelProfile,
    device: Device,
    num_devices: int,
    global_batch_size: int,
    sequence_length: int,
    stack: str = THIS_PROGRAM,
    precision: str = "bf16",
    cluster: Cluster | None = None,
    codec: str = "none",
) -> Setting:
    """A setting of a model that is known by its trace alone, on devices of a data sheet."""
    sizes = sizes_of_trace(model, precision, sequence_length)
    at = setting(sizes, device, num_devices, global_batch_size, sequence_length, stack, precision, cluster, codec)
    factors = load_learned().factors
    layers = _layers(sizes, model, precision)
    return replace(at, source=TracedDevice(traced=OnSheet(device=device, layers=layers, factors=factors)))


def _layers(sizes: ModelSizes, model: ModelProfile, precision: str) -> TracedLayers:
    """The traced layer that stands for each kind, and those at the ends."""
    own, layers = sizes.transformer, list(model.each_layer(precision))
    if isinstance(own, TracedSizes):
        kinds = {kind: own.layer(kind) for kind in own.kinds}
        return TracedLayers(model=model, precision=precision, kinds=kinds, ends={})
    kinds, position = {}, own.first_position
    for kind in own.kinds:
        kinds[kind] = layers[position]
        position += int(own.num_of(kind)[0])
    return TracedLayers(
        model=model, precision=precision, kinds=kinds, ends={"embedding": layers[0], "head": layers[-1]}
    )
