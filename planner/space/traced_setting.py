"""Questions about a model that was traced: on devices of a data sheet, and the same asked about another model."""

from __future__ import annotations

from dataclasses import replace

from planner.cost.factors import load_learned
from planner.cost.measured.machine import MeasuredMachine, stack_on
from planner.cost.measured.on_sheet import OnSheet, TracedDevice
from planner.cost.measured.traced import TracedLayers
from planner.space.question import Setting, setting
from profiles.machines.clusters import Cluster
from profiles.machines.devices import Device
from profiles.machines.profile import MachineProfile
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.profile import ModelProfile
from profiles.models.sizes import ModelSizes, sizes_of_trace
from profiles.models.traced_sizes import TracedSizes


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
    layers = layers_of(sizes, model, precision)
    return replace(at, source=TracedDevice(traced=OnSheet(device=device, layers=layers, factors=factors)))


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
    layers = layers_of(sizes, profile, precision)
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


def layers_of(sizes: ModelSizes, model: ModelProfile, precision: str) -> TracedLayers:
    """The traced layer that stands for each kind, and those at the ends."""
    own, layers = sizes.transformer, list(model.each_layer(precision))
    if isinstance(own, TracedSizes):
        kinds = {kind: own.layer(kind) for kind in own.kinds}
        shared = {
            degree: dict(zip(own.kinds, layers, strict=True)) for degree, layers in model.sharing.at(precision).items()
        }
        return TracedLayers(model=model, precision=precision, kinds=kinds, ends={}, shared=shared)
    kinds, position = {}, own.first_position
    for kind in own.kinds:
        count = int(own.num_of(kind)[0])
        # The first layer of a frozen model gives its input no gradient, all others do.
        kinds[kind] = layers[position + (sizes.adapters.freezes and count > 1)]
        position += count
    return TracedLayers(
        model=model, precision=precision, kinds=kinds, ends={"embedding": layers[0], "head": layers[-1]}
    )
