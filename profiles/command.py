"""`profile machine` and `profile model`: parse, measure, trace or read, write, and show the essentials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiles.inputs import bounds, limits
from profiles.terminal import completion, console
from profiles.version import VersionOption
from profiles.workloads.module_options import TaskOption, TracebackOption, TrustOption, WeightsOption

if TYPE_CHECKING:
    from rich.console import Console

    from profiles.machines.profile import MachineProfile
    from profiles.models.profile import ModelProfile

app = typer.Typer(add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

# Tokens of the samples that are shown where nothing says another.
USUAL_LENGTH = 512
JsonOption = Annotated[bool, typer.Option("--json", help="Print the profile on standard output.")]


@app.callback()
def profile(version: VersionOption = False) -> None:
    """Learn what a model is made of, and what this machine can do."""


@app.command()
def model(
    model: Annotated[
        str,
        typer.Argument(
            help="Shipped alias, config.json or its folder, package.module:factory, or a .onnx file.",
            autocompletion=completion.complete_model,
        ),
    ],
    sequence_length: Annotated[
        int | None,
        typer.Option(callback=bounds.SEQUENCE, help="Sequence length of the table shown [512, or the task's usual]."),
    ] = None,
    dimension: Annotated[
        list[str] | None,
        typer.Option(help="Size of a named dimension of a .onnx file, as NAME=NUMBER; may be repeated."),
    ] = None,
    task: TaskOption = None,
    weights: WeightsOption = None,
    json_output: JsonOption = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the model profile here.")] = None,
    trust_module: TrustOption = None,
    traceback: TracebackOption = False,
) -> None:
    """Trace MODEL into layers of operators, without weights and without a device."""
    from profiles.artifacts import dump
    from profiles.errors import InputError
    from profiles.files import ensure_writable, write_text
    from profiles.library import Asked, trace_model
    from profiles.onnx_files.show import is_onnx, profile_onnx_file

    if output is not None:
        ensure_writable(output)
    if is_onnx(model):
        if task or weights or trust_module:
            raise InputError(f"{model}: --task, --weights and --trust-module do not apply to an ONNX file")
        profile_onnx_file(model, sequence_length, dimension or (), json_output, output)
        return
    if dimension:
        raise InputError("--dimension is for .onnx files: dimensions of a traced model have no names")
    asked = Asked(task=task or "", weights=str(weights or ""))
    profile = trace_model(model, trust_module or (), asked)
    text = dump("model-profile", profile)
    if output is not None:
        write_text(output, text)
    if json_output:
        console.print_json(text)
    _show_model(profile, sequence_length or profile.usual_size or USUAL_LENGTH, console.console(json_output), output)


@app.command()
def machine(
    gpus: Annotated[
        int, typer.Option(callback=bounds.RANKS, help="Devices to measure at once; CPU ranks where there is no GPU.")
    ] = 1,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure this model's own shapes and layers too; may be repeated.",
            autocompletion=completion.complete_model,
        ),
    ] = None,
    sequence_length: Annotated[
        int, typer.Option(callback=bounds.SEQUENCE, help="Sequence length to measure the model's shapes at.")
    ] = 128,
    micro_batches: Annotated[str, typer.Option(help="Micro-batch sizes to measure the model's shapes at.")] = "1,2,4,8",
    precision: Annotated[
        str,
        typer.Option(
            help="Precisions to measure: fp32, bf16, fp8; tf32 on GPUs.", autocompletion=completion.complete_precisions
        ),
    ] = "fp32,bf16",
    task: TaskOption = None,
    oversubscription: Annotated[
        bool, typer.Option(help="Also measure with twice as many ranks as cores (15 s more).")
    ] = False,
    json_output: JsonOption = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the machine profile here too.")] = None,
    trust_module: TrustOption = None,
    traceback: TracebackOption = False,
) -> None:
    """Measure this machine with all its ranks busy, and keep the profile for `plan`."""
    from profiles.ranks.environment import check_system

    check_system()
    from dataclasses import replace

    from profiles.files import ensure_writable
    from profiles.library import stored_machine_path
    from profiles.machines.fingerprint import current_device_kind
    from profiles.machines.load import look_before
    from profiles.measure.machine import measure_machine
    from profiles.ranks.environment import is_main_process
    from profiles.ranks.stores import open_to
    from profiles.workloads.trust import named_modules

    sizes = bounds.whole_numbers("--micro-batches", micro_batches, 1, limits.SAMPLES)
    for path in (stored_machine_path(), *([output] if output else [])):
        ensure_writable(path)
    precisions = _precisions(precision)
    trusted = (*(trust_module or ()), *named_modules(*(model or ())))
    kind = current_device_kind()
    profiles = _models(model or [], task or "", precisions, trusted, kind)
    _check_sequence(profiles, sequence_length)
    out = console.console(json_output)
    load_before, notes = look_before(gpus)
    for note in (*notes, *filter(None, [open_to()])) if is_main_process() else ():
        out.print(f"note: {note}")
    if is_main_process():
        out.print(f"measuring {gpus} {'GPUs' if kind == 'cuda' else 'CPU ranks, one thread each (no GPU found)'}")
    with console.progress(out, "measuring") as on_progress:
        measured = measure_machine(
            num_ranks=gpus,
            device_kind=kind,
            sequence_length=sequence_length,
            micro_batch_sizes=sizes,
            tensor_degrees=_tensor_degrees(profiles, gpus),
            precisions=precisions,
            on_progress=on_progress,
            models=profiles,
            with_oversubscription=oversubscription,
            trusted=trusted,
        )
    if measured is None:
        return
    _keep(replace(measured, load_before=load_before), output, json_output)


def _keep(measured: MachineProfile, output: Path | None, json_output: bool) -> None:
    """Write a machine's profile where `plan` looks for it, and show it."""
    from profiles.artifacts import dump
    from profiles.files import write_text
    from profiles.library import stored_machine_path

    text = dump("machine-profile", measured)
    write_text(stored_machine_path(), text)
    if output is not None:
        write_text(output, text)
    if json_output:
        console.print_json(text)
    _show_machine(measured, console.console(json_output), output or stored_machine_path())


def _precisions(text: str) -> tuple[str, ...]:
    """The precisions that an option names, each once.

    Raises: UnknownNameError.
    """
    from profiles.errors import UnknownNameError
    from profiles.models.profile import PRECISIONS

    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        if name not in PRECISIONS:
            raise UnknownNameError("--precision", name, PRECISIONS)
    return names


def _models(
    names: list[str], task: str, precisions: tuple[str, ...], trusted: tuple[str, ...], device_kind: str
) -> list[ModelProfile]:
    """The models that a machine is measured with.

    Raises: InputError where there is none that a task could be of, or one cannot be used.
    """
    from profiles.errors import InputError
    from profiles.library import Asked, load_model

    if task and not names:
        raise InputError("--task has no effect without --model")
    asked = Asked(task=task, device_kind=device_kind)
    return [load_model(name, precisions, trusted, asked) for name in names]


def _check_sequence(profiles: list[ModelProfile], sequence_length: int) -> None:
    for profile in profiles:
        if profile.workload.task:
            # Its samples have the size that is usual for it.
            continue
        longest = profile.max_sequence_length or limits.SEQUENCE
        limits.check(f"{profile.name}: --sequence-length", sequence_length, 1, longest)


def _tensor_degrees(profiles: list[ModelProfile], num_ranks: int) -> tuple[int, ...]:
    """The tensor-parallel degrees that these ranks and models could use."""
    able = [profile for profile in profiles if profile.can_tensor_parallel]
    return tuple(
        degree
        for degree in range(1, num_ranks + 1)
        if num_ranks % degree == 0
        and (degree == 1 or (able and all(profile.num_kv_heads % degree == 0 for profile in able)))
    )


def _show_model(profile: ModelProfile, sequence: int, out: Console, output: Path | None) -> None:
    from profiles.models.operators import evaluate
    from profiles.terminal.tables import plain_table, print_table
    from profiles.units import format_bytes, format_count

    out.print(
        f"{profile.name}: {format_count(profile.num_parameters)} parameters, {profile.num_layers} layers "
        f"({len(set(profile.structure))} distinct), traced with {profile.traced_with}"
    )
    unit = profile.unit if profile.workload.task else "tokens"
    one = {"": "one sample", "pixels": f"one image of {sequence} x {sequence} pixels"}.get(
        unit, f"1 x {sequence} {unit}"
    )
    if profile.workload.task:
        out.print(f"task {profile.workload.task}")
    table = plain_table(f"one micro-batch of {one}")
    table.add_column("layer")
    for name in ("count", "precision", "parameters", "operators", "forward FLOP", "backward FLOP", "saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for precision, layers in profile.layers.items():
        for index, layer in enumerate(layers):
            table.add_row(
                layer.name,
                str(profile.structure.count(index)),
                precision,
                format_count(float(evaluate(layer.num_parameters, 1, sequence, 1))),
                str(len(layer.operators)),
                format_count(float(evaluate(layer.flops("forward"), 1, sequence, 1))),
                format_count(float(evaluate(layer.flops("backward"), 1, sequence, 1))),
                format_bytes(float(evaluate(layer.saved_bytes, 1, sequence, 1))),
            )
    print_table(table, out)
    if output is not None:
        out.print(f"written to {output}")


def _show_machine(measured: MachineProfile, out: Console, path: Path) -> None:
    from profiles.machines.load import causes
    from profiles.terminal.tables import plain_table, print_table
    from profiles.units import GB, format_percent, format_seconds

    out.print(f"{measured.num_devices} x {measured.device_name}, {measured.created}")
    table = plain_table()
    table.add_column("what")
    for name in ("value", "fit error"):
        table.add_column(name, justify="right", no_wrap=True)
    for precision, peak in measured.peak_flops_per_second.items():
        table.add_row(f"best matmul {precision}", f"{peak / 1e9:.4g} GFLOP/s", "")
    table.add_row("memory bandwidth", f"{measured.memory_bytes_per_second / GB:.3g} GB/s", "")
    table.add_row("host launch", format_seconds(measured.launch_seconds), "")
    if measured.operator_seconds:
        table.add_row("operator in training, besides its kernel", format_seconds(measured.operator_seconds), "")
    for link in measured.links:
        words = f"{link.collective.replace('_', '-')} over {link.group_size} ({link.span})"
        value = f"{format_seconds(link.latency_seconds)} + {link.bytes_per_second / GB:.3g} GB/s"
        table.add_row(words, value, format_percent(link.error_fraction))
    slow = measured.overlap
    table.add_row("compute slower while communicating", format_percent(slow.compute_slowdown_fraction), "")
    table.add_row("communication slower while computing", format_percent(slow.communication_slowdown_fraction), "")
    table.add_row("layers timed", str(len(measured.layer_timings)), "")
    print_table(table, out)
    if measured.load is not None and measured.load.is_busy:
        words = f"this machine was busy while it was measured ({causes(measured.load)})"
        out.print(f"note: {words}: the profile is marked as such; measure again when the machine is quiet")
    out.print(f"written to {path}")


def main() -> None:
    """The console script `profile`."""
    console.run(app)
