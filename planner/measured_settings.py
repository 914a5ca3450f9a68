"""Settings of a measured machine from what is asked, and what must be known of it before its plans are trusted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from planner.adapting import trained_note
from planner.cost.measured.corrections import read_corrections
from planner.plans import DEFAULT_SEQUENCE_LENGTH
from planner.request import TRACED_SEQUENCE_LENGTH, USUAL_CODECS, Request, sizes_asked_of
from planner.space.evidence import taught_words
from planner.space.measured_setting import measured_setting, ranks_on_host
from planner.space.question import Setting
from profiles.errors import InputError, UnknownNameError
from profiles.library import load_machine
from profiles.machines.clusters import Cluster
from profiles.machines.fingerprint import describe_difference
from profiles.machines.load import causes
from profiles.machines.profile import MachineProfile
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.profile import ModelProfile
from profiles.models.sizes import sizes_of_trace


def measured_settings(request: Request, cluster: Cluster | None) -> tuple[list[Setting], list[str]]:
    """The settings on the machine that a request names, in nodes of `cluster` where there is one, and notes.

    Raises: InputError where sizes, precision or software do not suit the model or the machine; UnknownNameError.
    """
    if request.stack != THIS_PROGRAM:
        raise InputError(
            f"--stack {request.stack}: a measured machine was measured with {THIS_PROGRAM}; plan for other software "
            "with --device or --cluster alone"
        )
    machine, which = load_machine(None if request.machine is None else str(request.machine), request.num_devices)
    notes = [f"planned for {which}", *_beyond_measured(machine, request.num_devices, cluster)]
    corrections = None if request.learned is None else read_corrections(request.learned, machine)
    if corrections is not None:
        notes.append(f"{taught_words(corrections)}, {request.learned}")
    model, precisions = _traced(request, machine)
    usual = DEFAULT_SEQUENCE_LENGTH if model.workload.reads_text else TRACED_SEQUENCE_LENGTH
    sequence, batches = sizes_asked_of(request, model, notes, usual)
    codecs = measured_codecs(machine) if request.codecs is None else request.codecs
    notes += trained_note(sizes_of_trace(model, precisions[0], sequence))
    notes += warnings(machine, request.num_devices, ranks_on_host(machine, request.num_devices, cluster))
    return [
        measured_setting(
            machine, model, request.num_devices, batch, sequence, precision, cluster, codec, corrections
        )
        for precision, codec, batch in itertools.product(precisions, codecs, batches)
    ], notes  # fmt: skip


def _traced(request: Request, machine: MachineProfile) -> tuple[ModelProfile, tuple[str, ...]]:
    """The model's layers, and the precisions to compare, which the machine was measured at.

    Raises: UnknownNameError, InputError.
    """
    precisions = request.precisions or ("bf16" if machine.device_kind == "cuda" else "fp32",)
    model = request.trace(precisions, machine.device_kind)
    for precision in precisions:
        if precision not in model.layers:
            raise UnknownNameError("precision", precision, model.layers)
        if precision not in machine.peak_flops_per_second:
            raise InputError(
                f"machine {machine.name} has no measured rate for {precision}: profile it at that precision"
            )
    return model, precisions


def measured_codecs(machine: MachineProfile) -> tuple[str, ...]:
    """Those of the usual codecs whose own work the machine was measured for."""
    known = {curve.name for curve in machine.kernels if curve.kind == "codec"}
    return tuple(name for name in USUAL_CODECS if name == "none" or known & {name, ""})


def _beyond_measured(machine: MachineProfile, num_devices: int, cluster: Cluster | None) -> Iterator[str]:
    """What is planned for beyond what was measured."""
    if cluster is not None:
        yield f"nodes and network of {cluster.title}: data sheet, not measured"
    if num_devices > machine.num_devices:
        what = "ranks" if machine.device_kind == "cpu" else "devices"
        yield f"measured with {machine.num_devices} {what}: times of larger groups are extrapolated from those"


def warnings(machine: MachineProfile, num_devices: int, ranks: int) -> list[str]:
    """What the reader must know before trusting a table of plans for `num_devices`, `ranks` of them on a host."""
    found = []
    if machine.device_kind == "cpu":
        found.append(f"no GPU: {num_devices} devices mean {num_devices} CPU ranks of one thread each")
    if machine.load is not None and machine.load.is_busy:
        words = f"the machine was busy while it was profiled ({causes(machine.load)})"
        found.append(f"{words}, so predictions are off: run `profile machine` again when it is quiet")
    if machine.fingerprint is not None:
        difference = describe_difference(machine.fingerprint)
        if difference:
            found.append(f"the machine was profiled elsewhere or with other versions ({difference})")
        if machine.device_kind == "cpu" and ranks > machine.fingerprint.num_cores:
            factor = machine.oversubscription_factor
            measured = f" (twice as many ranks as cores were {factor:.2g} times slower)" if factor else ""
            found.append(
                f"{ranks} ranks share {machine.fingerprint.num_cores} cores: step times are not judged{measured}"
            )
    return found
