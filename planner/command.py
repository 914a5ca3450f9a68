"""`plan`: parses, searches, prints the table and writes the plan file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiles import console

if TYPE_CHECKING:
    from planner.prediction import PlanFile
    from planner.search import Search
    from planner.space.questions import Reliability
    from profiles.cluster import MachineProfile
    from profiles.sizes import ModelSizes

CODECS = "none,bf16,int8,topk-1,powersgd-1,powersgd-4"
app = typer.Typer(add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False)
# Repeated steps of one plan differ by this much (README, "How right it is"). Most of what a band allows for is common
# to all plans of a machine and says nothing about which of two is faster.
REPEAT_FRACTION = 0.08


@app.command()
def plan(
    model: Annotated[str, typer.Option(help="Shipped alias, config.json or its folder, or package.module:factory.")],
    gpus: Annotated[int, typer.Option(help="Number of devices; CPU ranks where the machine has no GPU.")],
    global_batch: Annotated[
        str | None,
        typer.Option(help="Samples per optimizer step: 512, or to compare 256,512 or 256-1024 [8 per device]."),
    ] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens per sample [the model's, at most 4096].")] = None,
    machine: Annotated[str | None, typer.Option(help="Machine profile to plan for [the one stored here].")] = None,
    device: Annotated[str | None, typer.Option(help="Shipped device to plan for, such as h100-sxm.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Shipped cluster to plan for, such as dgx-h100.")] = None,
    stack: Annotated[str, typer.Option(help="Software that trains on a shipped device.")] = "trainwright",
    precision: Annotated[str | None, typer.Option(help="One, or several to compare: bf16,fp8 [bf16 on GPUs].")] = None,
    codecs: Annotated[str | None, typer.Option(help=f"Gradient codecs to consider [{CODECS}].")] = None,
    top: Annotated[int, typer.Option(min=1, help="Layouts to show and to write.")] = 10,
    simulate: Annotated[bool, typer.Option("--simulate", help="Also what the executor cannot run.")] = False,
    why_not: Annotated[str | None, typer.Option(help="Explain plans with these degrees: tp=8,pp=4.")] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="What would change the winner.")] = False,
    tokens: Annotated[str | None, typer.Option(help="Days and money for so many tokens: 300B, 1T.")] = None,
    price: Annotated[float | None, typer.Option(help="Dollars per device and hour.")] = None,
    mtbf: Annotated[float | None, typer.Option(help="Hours of one device between failures [50,700].")] = None,
    checkpoint_seconds: Annotated[
        float | None, typer.Option(help="How long a checkpoint holds training up [30].")
    ] = None,
    all_file: Annotated[Path | None, typer.Option("--all", help="Write every plan: .csv or .parquet.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Simulate the table's plans by events; write the best's timeline (Perfetto).")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the plan file on standard output.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan file here.")] = None,
) -> None:
    """Predict every legal layout of MODEL on GPUS devices and rank them by step time.

    The best plan comes first; every other line says what it loses to the best.
    """
    from planner.show import show
    from profiles.artifacts import dump, write_text

    asked: dict[str, object] = {
        "--why-not": why_not, "--sensitivity": sensitivity, "--tokens": tokens, "--price": price, "--all": all_file,
        "--simulate": simulate, "--trace": trace, "--mtbf": mtbf, "--checkpoint-seconds": checkpoint_seconds,
    }  # fmt: skip
    lines: list[str] = []
    sizes = _shipped(model, machine, device, cluster)
    if sizes is not None:
        from planner.shipped import Questions, Request, ask, parse_batches

        request = Request(
            model=sizes, num_devices=gpus, global_batches=parse_batches(global_batch) if global_batch else (),
            sequence_length=sequence_length, device=device, cluster=cluster, stack=stack,
            precisions=_words(precision), top=top, simulate=simulate, all_file=all_file,
            # All plans are those of one setting.
            codecs=_codecs(codecs or ("none" if all_file else CODECS)),
        )  # fmt: skip
        questions = Questions(
            why_not=why_not, sensitivity=sensitivity, tokens=tokens, price=price, trace_file=trace,
            reliability=_reliability(mtbf, checkpoint_seconds),
        )  # fmt: skip
        result, lines = ask(request, questions)
    else:
        _refuse(asked)
        result = _measured(
            model, gpus, _one_batch(global_batch), sequence_length, machine, device, precision, codecs, top
        )
    text = dump("plan", result)
    if output is not None:
        write_text(output, text)
    if json_output:
        console.print_json(text)
    show(result, console.console(json_output), output, lines)


def _shipped(model: str, machine: str | None, device: str | None, cluster: str | None) -> ModelSizes | None:
    """The sizes of a model that is to be planned for a shipped device or cluster; None for all else."""
    from profiles.errors import InputError
    from profiles.library import load_sizes

    if device is None and cluster is None:
        return None
    if machine is not None:
        raise InputError("give either --machine FILE or --device NAME, not both; --cluster NAME takes no --machine")
    return load_sizes(model)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",")) if text else ()


def _one_batch(text: str | None) -> int | None:
    from planner.shipped import parse_batches
    from profiles.errors import InputError

    batches = parse_batches(text) if text else ()
    if len(batches) > 1:
        raise InputError(f"--global-batch {text}: several are compared with --device or --cluster only; give one")
    return batches[0] if batches else None


def _reliability(failure_hours: float | None, checkpoint_seconds: float | None) -> Reliability:
    from planner.space.questions import Reliability

    given = {"failure_hours": failure_hours, "checkpoint_seconds": checkpoint_seconds}
    return Reliability(**{name: value for name, value in given.items() if value is not None})


def _refuse(asked: dict[str, object]) -> None:
    """Refuse what only a search on a shipped device answers."""
    from profiles.errors import InputError

    given = [name for name, value in asked.items() if value]
    if given:
        raise InputError(f"{given[0]} needs --device or --cluster, and a model known by its sizes")


def _measured(
    model: str,
    gpus: int,
    global_batch: int | None,
    sequence_length: int | None,
    machine: str | None,
    device: str | None,
    precision: str | None,
    codecs: str | None,
    top: int,
) -> PlanFile:
    """Plans for a measured machine, or of a user's own module on a device's data sheet."""
    from planner.gradients import measured_codecs
    from planner.search import Choices, search
    from planner.shipped import DEFAULT_SAMPLES_PER_DEVICE, DEFAULT_SEQUENCE_LENGTH
    from profiles.library import load_machine, load_model

    profile = load_model(model)
    target, which = load_machine(machine, device, gpus)
    notes = [f"planned for {which}"]
    if target.device_kind == "cpu" and gpus > target.num_devices:
        notes.append(f"measured with {target.num_devices} ranks: what larger groups take is carried over from those")
        target = _with_more_ranks(target, gpus)
    if sequence_length is None:
        sequence_length = min(profile.max_sequence_length or 512, DEFAULT_SEQUENCE_LENGTH)
        notes.append(f"sequence length assumed: {sequence_length} tokens")
    if global_batch is None:
        global_batch = DEFAULT_SAMPLES_PER_DEVICE * gpus
        notes.append(f"global batch assumed: {global_batch} samples")
    if precision is None:
        precision = "bf16" if target.device_kind == "cuda" else "fp32"
    found = search(
        target,
        profile,
        Choices(
            num_devices=gpus,
            global_batch_size=global_batch,
            sequence_length=sequence_length,
            precisions=tuple(precision.split(",")),
            codecs=_codecs(codecs) if codecs else measured_codecs(target, _codecs(CODECS)),
            # On a measured machine the plans are to be run: offer what the executor runs.
            zero_stages=(0,) if target.origin == "measured" else (0, 1, 2, 3),
        ),
    )
    return _plan_file(found, top, (*notes, *_warnings(found)))


def _with_more_ranks(machine: MachineProfile, num_ranks: int) -> MachineProfile:
    """A profile of CPU ranks for more of them on the same host, which then share its memory."""
    from dataclasses import replace

    return replace(
        machine,
        num_devices=num_ranks,
        devices_per_node=num_ranks,
        memory_bytes=machine.memory_bytes * machine.num_devices / num_ranks,
    )


def _codecs(text: str) -> tuple[str, ...]:
    from profiles.codecs import codec

    names = tuple(codec(name.strip()).name for name in text.split(","))
    return names if "none" in names else ("none", *names)


def _warnings(search: Search) -> list[str]:
    """What the reader must know before trusting the table."""
    from profiles.fingerprint import describe_difference

    machine, count = search.machine, search.choices.num_devices
    warnings = []
    if machine.device_kind == "cpu":
        warnings.append(f"no GPU: {count} devices are {count} CPU ranks of one thread each")
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


def _plan_file(search: Search, top: int, notes: tuple[str, ...]) -> PlanFile:
    from planner.explain import candidates
    from planner.prediction import PlanFile

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


def main() -> None:
    """The console script `plan`."""
    console.run(app)
