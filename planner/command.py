"""`plan`: parses, searches, prints the table and writes the plan file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.terminal import listing
from planner.terminal import purchase_options as buying
from profiles.inputs import bounds
from profiles.terminal import completion, console
from profiles.version import VersionOption
from profiles.workloads.module_options import TaskOption, TracebackOption, TrustOption, WeightsOption

if TYPE_CHECKING:
    from rich.console import Console

    from planner.prediction import PlanFile
    from planner.request import Request

# What `--codecs auto` stands for; planner/request has it as names, and is loaded only where something is planned.
AUTO, CODECS = "auto", "none,bf16,int8,topk-1,powersgd-1,powersgd-4"
app = typer.Typer(add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def plan(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help="Shipped alias, config.json or its folder, or package.module:factory.",
            autocompletion=completion.complete_model,
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(help="Devices (CPU ranks if there are no GPUs): 64; to compare: 64,256 or 64-1024 (doubling)."),
    ] = None,
    global_batch: Annotated[
        str | None,
        typer.Option(help="Samples per optimizer step: 512; to compare: 256,512 or 256-1024 [8 per device]."),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(callback=bounds.SEQUENCE, help="Tokens per sample [the model's, at most 4096]."),
    ] = None,
    machine: Annotated[str | None, typer.Option(help="Machine profile to plan for [the one stored here].")] = None,
    learned: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Corrections for that machine, from `compare --learn`.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Shipped device to plan for; to compare: h100-sxm,b200-sxm.",
            autocompletion=completion.complete_devices,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Cluster to plan for, or several; with --machine, its nodes and network.",
            autocompletion=completion.complete_cluster,
        ),
    ] = None,
    stack: Annotated[
        str, typer.Option(help="Training software, on shipped devices.", autocompletion=completion.complete_stack)
    ] = "trainwright",
    attention_kernel: Annotated[
        str | None, typer.Option(metavar="NAME", help="Attention kernel: unfused, flash2, flash3, cudnn [the stack's].")
    ] = None,
    tp_overlap: Annotated[
        bool | None, typer.Option("--tp-overlap/--no-tp-overlap", help="Overlap tensor-parallel messages with compute.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precision; several are compared: bf16,fp8 [bf16 on GPUs].", autocompletion=listing.complete_precisions
        ),
    ] = None,
    codecs: Annotated[
        str,
        typer.Option(help=f"Gradient codecs to consider; auto: {CODECS}.", autocompletion=completion.complete_codecs),
    ] = "none",
    peft: Annotated[
        str | None,
        typer.Option(metavar="lora:RANK[:LINEARS]", help="Train adapters only: lora:16, lora:16:q,v, lora:8:all."),
    ] = None,
    quantised_base: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Format of the frozen weights: nf4, nf4-dq, int4 or int8.")
    ] = None,
    compress: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Price compressed models too: auto, none, or names such as prune-ffn-50.",
            autocompletion=listing.complete_recipes,
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="SHARES", help="Limits of compressed models: size=0.5,latency=0.8,memory=1.")
    ] = None,
    top: Annotated[int, typer.Option(callback=bounds.SHOWN, help="Plans to show; the file has similar ones too.")] = 10,
    simulate: Annotated[bool, typer.Option("--simulate", help="Include plans that the executor cannot run.")] = False,
    why_not: Annotated[str | None, typer.Option(help="Explain how plans with these degrees fare: tp=8,pp=4.")] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Show what each unknown costs, and which would change the winner.")
    ] = False,
    tokens: buying.TokensOption = None,
    samples: buying.SamplesOption = None,
    epochs: buying.EpochsOption = None,
    days: buying.DaysOption = None,
    by: buying.ByOption = None,
    price: buying.PriceOption = None,
    spot_price: buying.SpotPriceOption = None,
    spot_hours: buying.SpotHoursOption = None,
    mtbf: buying.MtbfOption = None,
    checkpoint_seconds: buying.CheckpointSecondsOption = None,
    keep_checkpoints: buying.KeepCheckpointsOption = None,
    pue: buying.PueOption = None,
    host_watts: buying.HostWattsOption = None,
    kwh_price: buying.KwhPriceOption = None,
    grid_grams: buying.GridGramsOption = None,
    headroom: buying.HeadroomOption = None,
    all_file: Annotated[Path | None, typer.Option("--all", help="Write every plan (.csv or .parquet).")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Simulate the table's plans by events; write the best one's timeline (Perfetto)."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all results as one HTML page that works offline.")
    ] = None,
    list_kind: Annotated[
        str | None,
        typer.Option(
            "--list",
            metavar="KIND",
            help="Only list devices, clusters, models, stacks, schedules or codecs.",
            autocompletion=listing.complete_kinds,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Read a plan file, or a job of other software."),
    ] = None,
    export: Annotated[
        str | None, typer.Option(metavar="STACK", help="Write the plan for other software, into the folder -o.")
    ] = None,
    rank: Annotated[
        int, typer.Option(callback=bounds.SHOWN, help="Number of the plan, or of the comparison's row, to write.")
    ] = 1,
    legend: Annotated[bool, typer.Option("--legend", help="Only explain the words in a plan's name.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the plan file on standard output.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan file here.")] = None,
    task: TaskOption = None,
    weights: WeightsOption = None,
    trust_module: TrustOption = None,
    traceback: TracebackOption = False,
    version: VersionOption = False,
) -> None:
    """Predict every legal layout of MODEL on GPUS devices and rank them by step time.

    The best plan comes first; every other line says what it loses to the best.
    """
    from planner.terminal.answering import job_with_page, plans_with_page
    from planner.terminal.buy import is_purchase, put_out, read_or_compare
    from planner.terminal.handover import is_shown, write_export
    from planner.terminal.options import NEEDS, TAKES, check_pools
    from profiles.files import ensure_writable
    from profiles.terminal.options import check_options, command_line, given_options

    check_options(context, NEEDS, TAKES)
    given = given_options(context)
    out = console.console(json_output)
    if list_kind is not None or legend:
        listing.explain(list_kind, out, json_output)
        return
    from planner.ask import parse_compression, parse_counts
    from planner.space.beside import Questions

    counts = () if gpus is None else parse_counts(gpus)
    purchases = is_purchase(counts, device, cluster, source)
    _check_together(context.params, given, purchases)
    for path in filter(None, (None if export else output, trace, page)):
        ensure_writable(path)
    request = _request(context.params, given, counts[0] if counts else 0)
    questions = Questions(
        why_not=why_not, sensitivity=sensitivity, trace_file=trace, **buying.budget_of(context.params),
        terms=buying.terms_of(context.params, date.today()),
    )  # fmt: skip
    if purchases:
        request = request if "top" in given else replace(request, top=1)
        with console.progress(out, "planning") as on_progress:
            answer = read_or_compare(request, counts, questions, source, on_progress)
        row = rank if "rank" in given else None
        put_out(answer, out, row, export, output, json_output, page, shows=is_shown(export, source))
        return
    check_pools(given, cluster)
    buying.check_prices_of(questions, device, cluster)
    compression = None if compress is None else parse_compression(compress, target)
    typed = command_line(context, "plan")
    with console.progress(out, "planning") as on_progress:
        if source is None:
            result = plans_with_page(request, questions, compression, page, on_progress, _noting(out), typed)
        else:
            result = job_with_page(source, request, page, on_progress, typed)
    _put_out(result, out, None if export else output, json_output, page, shows=is_shown(export, source))
    if export is not None and output is not None:
        write_export(export, result, rank, output, out)


def _noting(out: Console) -> Callable[[str], None]:
    """What prints a note at once."""
    return lambda told: out.print(f"note: {told}")


def _request(params: Mapping[str, Any], given: Mapping[str, str], num_devices: int) -> Request:
    """What is asked of the planner, as options say it.

    Raises: InputError, UnknownNameError.
    """
    from planner.ask import parse_batches
    from planner.request import Request, codecs_asked, parse_headroom
    from profiles.library import Asked
    from profiles.models.adapters import parse_adapters

    batch, codecs, export, stack = (params[name] for name in ("global_batch", "codecs", "export", "stack"))
    return Request(
        model=params["model"] or "", num_devices=num_devices, machine=params["machine"], learned=params["learned"],
        device=params["device"], cluster=params["cluster"],
        global_batches=() if batch is None else parse_batches(batch), sequence_length=params["sequence_length"],
        stack=stack if "stack" in given else export or stack, attention_kernel=params["attention_kernel"],
        tensor_overlap=params["tp_overlap"], precisions=_words(params["precision"]),
        codecs=codecs_asked(codecs), top=params["top"],
        simulate=params["simulate"], all_file=params["all_file"], trusted=tuple(params["trust_module"] or ()),
        adapters=parse_adapters(params["peft"], params["quantised_base"]),
        asked=Asked(task=params["task"] or "", weights=str(params["weights"] or "")),
        headroom_fraction=parse_headroom(params["headroom"]),
    )  # fmt: skip


def _check_together(params: Mapping[str, Any], given: Mapping[str, str], purchases: bool) -> None:
    """Check what parameters must be there, or may not be together.

    Raises: InputError.
    """
    from profiles.errors import InputError

    buying.check_bill(given, purchases)
    if "rank" in given and not purchases and params["export"] is None:
        raise InputError("--rank has no effect without --export: give both or neither")
    if params["source"] is None and (params["model"] is None or params["gpus"] is None):
        raise InputError("give --model and --gpus: what is trained, and on how many devices (plan --list models)")
    if params["peft"] is not None and params["compress"] is not None:
        raise InputError("--compress cannot be combined with --peft: leave one of them out")
    if "," in params["stack"]:
        raise InputError(f"--stack {params['stack']}: stacks cannot be compared in one call: give one at a time")
    if params["codecs"] == AUTO and params["all_file"] is not None:
        raise InputError("--all writes the plans of a single setting: name one of --codecs")


def _put_out(
    result: PlanFile, out: Console, output: Path | None, json_output: bool, page: Path | None, *, shows: bool
) -> None:
    """Write the answer and show it (`shows`), and say where its page is."""
    from planner.terminal.show import show
    from profiles.artifacts import dump
    from profiles.files import write_text

    if output is not None or json_output:
        text = dump("plan", result)
        if output is not None:
            write_text(output, text)
        if json_output:
            console.print_json(text)
    if shows:
        show(result, out, output)
    if page is not None:
        out.print(f"page: {page}")


def _words(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(dict.fromkeys(word.strip() for word in text.split(",")))


def main() -> None:
    """The console script `plan`."""
    console.run(app)
