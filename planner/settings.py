"""The settings that a request asks to compare, of data sheets or of a measured machine, and what was assumed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from planner.adapting import refuse_adapters, trained_note
from planner.request import TRACED_SEQUENCE_LENGTH, USUAL_CODECS, Request, sizes_asked, sizes_asked_of
from planner.space.question import Setting, setting
from planner.stacks.abilities import check_setting
from profiles.errors import InputError, UnknownNameError
from profiles.inputs import limits
from profiles.laws.kernels import load_constants
from profiles.machines.clusters import Cluster, MixedCluster
from profiles.machines.devices import Device, find_device, namesakes
from profiles.machines.stacks import THIS_PROGRAM, load_stack
from profiles.units import format_bytes, format_percent


def settings_of(request: Request) -> tuple[list[Setting], list[str]]:
    """The settings that a request asks to compare, and what was assumed.

    Raises: InputError where sizes or the precision do not suit the model or the machine; UnknownNameError.
    """
    if request.machine is not None and request.device is not None:
        raise InputError("give either --machine FILE or --device NAME, not both")
    if request.is_measured:
        _refuse_kernels(request, "a measured machine has its own kernels")
    if not request.is_measured and request.learned is not None:
        raise InputError("--learned FILE belongs to a measured machine: leave --device out, or give its --machine FILE")
    refuse_adapters(request)
    cluster = request.find_cluster()
    if isinstance(cluster, MixedCluster):
        raise InputError(f"--cluster {cluster.name} has two kinds of devices, which only the command `plan` plans for")
    if request.is_measured:
        from planner.measured_settings import measured_settings

        settings, notes = measured_settings(request, cluster)
    else:
        settings, notes = _shipped(request, cluster)
    return _with_headroom(settings, request.headroom_fraction, notes), notes


def _with_headroom(settings: list[Setting], fraction: float, notes: list[str]) -> list[Setting]:
    """The settings with a share of memory left free, of which a note tells."""
    limits.check("--headroom", fraction, 0, limits.HEADROOM)
    if not fraction:
        return settings
    settings = [replace(at, headroom_fraction=fraction) for at in settings]
    room, whole = settings[0].memory_bytes, settings[0].whole_memory_bytes
    left = format_percent(fraction)
    notes.append(f"at least {left} of memory is left free: plans have {format_bytes(room)} of {format_bytes(whole)}")
    return settings


def _refuse_kernels(request: Request, why: str) -> None:
    """Refuse kernels that are named where those of the model are known."""
    if request.attention_kernel is not None or request.tensor_overlap is not None:
        raise InputError(f"--attention-kernel and --tp-overlap: {why}, leave them out")


def _shipped(request: Request, cluster: Cluster | None) -> tuple[list[Setting], list[str]]:
    """Settings of a shipped device or cluster."""
    device = find_device(request.device or (cluster.device if cluster else ""))
    if cluster and find_device(cluster.device) != device:
        raise InputError(f"--cluster {cluster.name} has {cluster.device}, not {request.device}: give one of the two")
    notes = planned_for(cluster.title if cluster else device.title, request.stack, adapts=request.adapters.freezes)
    if others := namesakes(request.device or device.name, device):
        notes.append(f"--device {request.device} is read as {device.name}; also shipped: {', '.join(others)}")
    model = request.sizes()
    precisions = request.precisions or ("bf16" if "bf16" in device.peak_tflops else "fp16",)
    for precision in precisions:
        if precision not in device.peak_tflops:
            known = ", ".join(sorted(device.peak_tflops))
            raise InputError(f"unknown precision '{precision}' on {device.title}: it has {known}")
    codecs = USUAL_CODECS if request.codecs is None else request.codecs
    if model is None:
        _refuse_kernels(request, f"{request.model} was traced with its own kernels")
        settings = _traced(request, device, cluster, precisions, codecs, notes)
        _check_stack(request, settings)
        return settings, notes
    sequence, batches = sizes_asked(request, model.name, model.longest_sequence, notes)
    settings = [
        with_kernels(
            setting(model, device, request.num_devices, batch, sequence, request.stack, precision, cluster, gradients),
            request,
        )
        for precision, gradients, batch in itertools.product(precisions, codecs, batches)
    ]
    _check_stack(request, settings)
    notes += [_kernels_of(settings[0]), *trained_note(model)]
    return settings, notes


def _check_stack(request: Request, settings: Sequence[Setting]) -> None:
    """Check that the software has what settings ask for, unless what it lacks is offered too."""
    for at in settings:
        if not request.simulate:
            check_setting(at.stack, at.precision, at.codec, str(at.model.workload.config.get("model_type", "")))


def with_kernels(at: Setting, request: Request) -> Setting:
    """The setting with the attention kernel, the overlap and the gradients that are asked for.

    Raises: InputError for a kernel that is not known, or an overlap that the stack does not have.
    """
    known = sorted({"unfused", *(kernel for one in load_constants().values() for kernel in one.kernels)})
    if request.attention_kernel not in (None, *known):
        raise UnknownNameError("attention kernel", str(request.attention_kernel), known)
    if request.tensor_overlap and not at.stack.habits.can_overlap_tensor:
        raise InputError(f"--tp-overlap: {at.stack.name} cannot overlap tensor-parallel messages: leave it out")
    overlaps = at.overlaps_tensor if request.tensor_overlap is None else request.tensor_overlap
    return replace(
        at,
        attention_kernel=request.attention_kernel or at.attention_kernel,
        overlaps_tensor=overlaps,
        gradient_dtype=request.gradient_dtype or "",
    )


def _kernels_of(at: Setting) -> str:
    """What is said of kernels and overlap."""
    beside = ", tensor-parallel messages overlapped where sequences are split" if at.overlaps_tensor else ""
    return f"attention by {at.attention_kernel}{beside}"


def _traced(
    request: Request,
    device: Device,
    cluster: Cluster | None,
    precisions: Sequence[str],
    codecs: Sequence[str],
    notes: list[str],
) -> list[Setting]:
    """Settings of a model that is known by its trace alone."""
    from planner.space.traced_setting import traced_setting

    model = request.trace(precisions)
    sequence, batches = sizes_asked_of(request, model, notes, TRACED_SEQUENCE_LENGTH)
    return [
        traced_setting(
            model, device, request.num_devices, batch, sequence, request.stack, precision, cluster, gradients
        )
        for precision, gradients, batch in itertools.product(precisions, codecs, batches)
    ]


def planned_for(where: str, stack: str, *, adapts: bool = False) -> list[str]:
    """Notes on the data sheets that are planned for, and on whether plans can be written down: not of what `adapts`.

    Raises: UnknownNameError for a stack that is not shipped.
    """
    runs = load_stack(stack).runs
    words = [f"planned for {where} with {stack}, from data sheets and published runs, not measured"]
    if stack == THIS_PROGRAM:
        return words
    if runs is None:
        return [*words, f"these plans are for {stack}; which of them it can run is not known"]
    mine = f"these plans are for {stack} {runs.version}"
    if adapts:
        return [*words, f"{mine}; --export does not write models with adapters, so write the job by hand"]
    return [*words, f"{mine}; --export writes one as a job for it"]
