"""Plans for a machine that was measured, or of a user's module on a data sheet: the question, searched; the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from planner.measured.explain import candidates
from planner.measured.gradients import measured_codecs
from planner.measured.search import Choices, Search, search
from planner.measured_settings import warnings
from planner.plans import DEFAULT_SAMPLES_PER_DEVICE, DEFAULT_SEQUENCE_LENGTH
from planner.prediction import PlanFile
from planner.request import USUAL_CODECS, Request, codecs_of
from planner.space.evidence import REPEAT_FRACTION
from profiles.library import load_machine, load_model
from profiles.machines.profile import MachineProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `plan` was asked of a measured machine; None is for it to choose, codecs among the usual ones.

    `trusted` are the modules of the user's that a file's model may be built by.
    """

    model: str
    num_devices: int
    global_batch: int | None
    sequence_length: int | None
    machine: str | None
    device: str | None
    precision: str | None
    codecs: str | None
    usual_codecs: str
    trusted: tuple[str, ...] = ()


def asked_of(request: Request) -> Asked:
    """The same question, of the one global batch that it names."""
    return Asked(
        model=str(request.model),
        num_devices=request.num_devices,
        global_batch=request.global_batches[0] if request.global_batches else None,
        sequence_length=request.sequence_length,
        machine=None if request.machine is None else str(request.machine),
        device=request.device,
        precision=",".join(request.precisions) or None,
        codecs=None if request.codecs is None else ",".join(request.codecs),
        usual_codecs=",".join(USUAL_CODECS),
        trusted=request.trusted,
    )


def searched(asked: Asked) -> tuple[Search, tuple[str, ...]]:
    """All plans, priced, and what the reader must know before trusting them.

    Raises: InputError, NoFeasiblePlanError.
    """
    gpus = asked.num_devices
    target, which = load_machine(asked.machine, asked.device, gpus)
    usual = "bf16" if target.device_kind == "cuda" else "fp32"
    precisions = tuple(dict.fromkeys((usual if asked.precision is None else asked.precision).split(",")))
    profile = load_model(asked.model, precisions, asked.trusted)
    notes = [f"planned for {which}"]
    if target.device_kind == "cpu" and gpus > target.num_devices:
        notes.append(f"measured with {target.num_devices} ranks: what larger groups take is carried over from those")
        target = _with_more_ranks(target, gpus)
    sequence_length, global_batch = asked.sequence_length, asked.global_batch
    if sequence_length is None:
        sequence_length = min(profile.max_sequence_length or 512, DEFAULT_SEQUENCE_LENGTH)
        notes.append(f"sequence length assumed: {sequence_length} tokens")
    if global_batch is None:
        global_batch = DEFAULT_SAMPLES_PER_DEVICE * gpus
        notes.append(f"global batch assumed: {global_batch} samples")
    found = search(
        target,
        profile,
        Choices(
            num_devices=gpus,
            global_batch_size=global_batch,
            sequence_length=sequence_length,
            precisions=precisions,
            codecs=codecs_of(asked.codecs)
            if asked.codecs is not None
            else measured_codecs(target, codecs_of(asked.usual_codecs)),
        ),
    )
    ranks = gpus if target.devices_per_node == target.num_devices else target.devices_per_node
    return found, (*notes, *warnings(target, gpus, ranks))


def _with_more_ranks(machine: MachineProfile, num_ranks: int) -> MachineProfile:
    """A profile of CPU ranks for more of them on the same host, which then share its memory."""
    return replace(
        machine,
        num_devices=num_ranks,
        devices_per_node=num_ranks,
        memory_bytes=machine.memory_bytes * machine.num_devices / num_ranks,
    )


def plan_file(search: Search, top: int, notes: tuple[str, ...]) -> PlanFile:
    """The plan file of a search: its `top` best layouts.

    Raises: NoFeasiblePlanError.
    """
    chosen, baseline = candidates(search, top)
    best, plain = chosen[0].prediction, chosen[baseline].prediction
    gain = plain.step_seconds / best.step_seconds - 1
    if baseline > 0 and plain.fits and gain <= REPEAT_FRACTION:
        words = f"the gain over plain data parallel ({gain:.1%}) is no larger than steps of one plan differ"
        notes = (*notes, f"{words}: {chosen[baseline].plan.id} is as good a choice")
    model, machine = search.model, search.machine
    return PlanFile(
        model_name=model.name,
        workload=model.workload,
        num_layers=model.num_layers,
        num_parameters=model.num_parameters,
        machine_name=machine.name,
        machine_origin=machine.origin,
        machine_device_kind=machine.device_kind,
        machine_fingerprint=machine.fingerprint.digest if machine.fingerprint else "",
        num_devices=search.choices.num_devices,
        global_batch_size=search.choices.global_batch_size,
        sequence_length=search.choices.sequence_length,
        candidates=chosen,
        baseline=baseline,
        num_legal=search.num_legal,
        rejected=search.rejected,
        notes=notes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
