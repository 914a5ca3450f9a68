"""Plans for a machine that was measured, or of a user's module on a data sheet: the question, searched; the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from planner.measured.explain import candidates
from planner.measured.gradients import measured_codecs
from planner.measured.search import Choices, Search, search
from planner.plans import DEFAULT_SAMPLES_PER_DEVICE, DEFAULT_SEQUENCE_LENGTH
from planner.prediction import PlanFile
from profiles.codecs.codec import codec
from profiles.library import load_machine, load_model
from profiles.machines.fingerprint import describe_difference
from profiles.machines.load import causes
from profiles.machines.profile import MachineProfile

# Repeated steps of one plan differ by this much (README, "How right it is"). Most of what a band allows for is common
# to all plans of a machine and says nothing about which of two is faster.
REPEAT_FRACTION = 0.08


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
    return found, (*notes, *_warnings(found))


def _with_more_ranks(machine: MachineProfile, num_ranks: int) -> MachineProfile:
    """A profile of CPU ranks for more of them on the same host, which then share its memory."""
    return replace(
        machine,
        num_devices=num_ranks,
        devices_per_node=num_ranks,
        memory_bytes=machine.memory_bytes * machine.num_devices / num_ranks,
    )


def codecs_of(text: str) -> tuple[str, ...]:
    """The codecs that an option names; gradients as they are among them.

    Raises: UnknownNameError.
    """
    names = tuple(codec(name.strip()).name for name in text.split(","))
    return names if "none" in names else ("none", *names)


def _warnings(search: Search) -> list[str]:
    """What the reader must know before trusting the table."""
    machine, count = search.machine, search.choices.num_devices
    warnings = []
    if machine.device_kind == "cpu":
        warnings.append(f"no GPU: {count} devices are {count} CPU ranks of one thread each")
    if machine.load is not None and machine.load.is_busy:
        words = f"the machine was busy while it was profiled ({causes(machine.load)})"
        warnings.append(f"{words}, so predictions are off: run `profile machine` again when it is quiet")
    if machine.fingerprint is not None:
        difference = describe_difference(machine.fingerprint)
        if difference:
            warnings.append(f"the machine was profiled elsewhere or with other versions ({difference})")
        ranks = count if machine.devices_per_node == machine.num_devices else machine.devices_per_node
        if machine.device_kind == "cpu" and ranks > machine.fingerprint.num_cores:
            factor = machine.oversubscription_factor
            measured = f" (twice as many ranks as cores were {factor:.2g} times slower)" if factor else ""
            warnings.append(
                f"{ranks} ranks share {machine.fingerprint.num_cores} cores: step times are not judged{measured}"
            )
    return warnings


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
