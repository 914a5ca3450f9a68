"""`plan`: parses, searches, prints the table and writes the plan file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.terminal import listing
from profiles.inputs import bounds
from profiles.terminal import completion, console
from profiles.version import VersionOption
from profiles.workloads.module_options import TaskOption, TracebackOption, TrustOption, WeightsOption

if TYPE_CHECKING:
    from rich.console import Console

    from planner.ask import Compression
    from planner.prediction import PlanFile
    from planner.space.questions import Reliability

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
        int | None,
        typer.Option(callback=bounds.DEVICES, help="Number of devices; CPU ranks where the machine has no GPU."),
    ] = None,
    global_batch: Annotated[
        str | None,
        typer.Option(help="Samples per optimizer step: 512, or to compare 256,512 or 256-1024 [8 per device]."),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(callback=bounds.SEQUENCE, help="Tokens per sample [the model's, at most 4096]."),
    ] = None,
    machine: Annotated[str | None, typer.Option(help="Machine profile to plan for [the one stored here].")] = None,
    learned: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `compare --learn` wrote of that machine.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Shipped device to plan for, such as h100-sxm.", autocompletion=completion.complete_device),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Shipped cluster to plan for, such as dgx-h100; with --machine, its nodes.",
            autocompletion=completion.complete_cluster,
        ),
    ] = None,
    stack: Annotated[
        str, typer.Option(help="Software that trains on a shipped device.", autocompletion=completion.complete_stack)
    ] = "trainwright",
    attention_kernel: Annotated[
        str | None, typer.Option(metavar="NAME", help="Attention: unfused, flash2, flash3, cudnn [the stack's].")
    ] = None,
    tp_overlap: Annotated[
        bool | None, typer.Option("--tp-overlap/--no-tp-overlap", help="Tensor-parallel messages beside compute.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="One, or several to compare: bf16,fp8 [bf16 on GPUs].", autocompletion=listing.complete_precisions
        ),
    ] = None,
    codecs: Annotated[
        str | None,
        typer.Option(
            help=f"Lossy gradients to consider [none]; auto: {CODECS}.", autocompletion=completion.complete_codecs
        ),
    ] = None,
    peft: Annotated[
        str | None,
        typer.Option(metavar="lora:RANK[:LINEARS]", help="Train adapters alone: lora:16, lora:16:q,v, lora:8:all."),
    ] = None,
    quantised_base: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Frozen weights beside adapters in nf4, nf4-dq, int4 or int8.")
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
        str | None, typer.Option(metavar="SHARES", help="What they may have, as size=0.5,latency=0.8,memory=1.")
    ] = None,
    top: Annotated[int, typer.Option(callback=bounds.SHOWN, help="Plans to show; like ones are written too.")] = 10,
    simulate: Annotated[bool, typer.Option("--simulate", help="Also what the executor cannot run.")] = False,
    why_not: Annotated[str | None, typer.Option(help="Explain plans with these degrees: tp=8,pp=4.")] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="What each unknown would cost, and what would change the winner.")
    ] = False,
    tokens: Annotated[str | None, typer.Option(help="Days and money for so many tokens: 300B, 1T.")] = None,
    price: Annotated[float | None, typer.Option(callback=bounds.PRICE, help="Dollars per device and hour.")] = None,
    mtbf: Annotated[
        float | None,
        typer.Option(callback=bounds.FAILURE_HOURS, help="Hours of one device between failures [50,700]."),
    ] = None,
    checkpoint_seconds: Annotated[
        float | None,
        typer.Option(callback=bounds.CHECKPOINT_SECONDS, help="How long a checkpoint holds training up [30]."),
    ] = None,
    all_file: Annotated[Path | None, typer.Option("--all", help="Write every plan: .csv or .parquet.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Simulate the table's plans by events; write the best's timeline (Perfetto).")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all of it as one HTML page that works offline.")
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
        typer.Option("--from", metavar="FILE", help="A job of yours, in other software's words; or a plan file."),
    ] = None,
    export: Annotated[
        str | None, typer.Option(metavar="STACK", help="Write the plan down for other software, into the folder -o.")
    ] = None,
    rank: Annotated[int, typer.Option(callback=bounds.SHOWN, help="Which plan of the table is written down.")] = 1,
    legend: Annotated[bool, typer.Option("--legend", help="Only say what the words of a plan mean.")] = False,
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
    from planner.terminal.handover import page_of, read_job, write_export, write_page
    from planner.terminal.options import NEEDS, TAKES, check_pools
    from planner.terminal.progress import pieces
    from profiles.files import ensure_writable
    from profiles.models.adapters import parse_adapters
    from profiles.terminal.options import check_options, given_options

    check_options(context, NEEDS, TAKES)
    given = given_options(context)
    out = console.console(json_output)
    if list_kind is not None or legend:
        listing.explain(list_kind, out, json_output)
        return
    from planner.ask import Asked as Found
    from planner.ask import ask_whole, parse_batches, parse_count
    from planner.request import Request, codecs_of
    from planner.space.beside import Questions
    from profiles.library import Asked

    _check_together(context.params)
    for path in filter(None, (None if export else output, trace, page)):
        ensure_writable(path)
    request = Request(
        model=model or "", num_devices=gpus or 0, machine=machine, learned=learned, device=device, cluster=cluster,
        global_batches=() if global_batch is None else parse_batches(global_batch), sequence_length=sequence_length,
        stack=stack if "stack" in given else export or stack, attention_kernel=attention_kernel,
        tensor_overlap=tp_overlap, precisions=_words(precision),
        codecs=None if codecs == AUTO else codecs_of("none" if codecs is None else codecs), top=top,
        simulate=simulate, all_file=all_file, trusted=tuple(trust_module or ()),
        adapters=parse_adapters(peft, quantised_base),
        asked=Asked(task=task or "", weights=str(weights or "")),
    )  # fmt: skip
    check_pools(given, cluster)
    questions = Questions(
        why_not=why_not, sensitivity=sensitivity, tokens=None if tokens is None else parse_count(tokens),
        price=price, trace_file=trace, reliability=_reliability(mtbf, checkpoint_seconds),
    )  # fmt: skip
    compression = None if compress is None else _compression(compress, target)
    with console.progress(out, "planning") as on_progress:
        planning, drawing = pieces(on_progress, (3.0, 0.0 if page is None else 2.0))
        found = (
            ask_whole(request, questions, planning, lambda words: out.print(f"note: {words}"), compression)
            if source is None
            else Found(file=read_job(source, request, planning))
        )
        html = None if page is None else page_of(found, simulate, drawing)
    result = found.file
    _put_out(result, out, None if export else output, json_output)
    if page is not None and html is not None:
        write_page(page, html, out)
    if export is not None and output is not None:
        write_export(export, result, rank, output, out)


def _check_together(given: Mapping[str, Any]) -> None:
    """Check what parameters must be there, or may not be together.

    Raises: InputError.
    """
    from profiles.errors import InputError

    if given["source"] is None and (given["model"] is None or given["gpus"] is None):
        raise InputError("give --model and --gpus: what is trained, and on how many devices (plan --list models)")
    if given["peft"] is not None and given["compress"] is not None:
        raise InputError("--compress: what adapters are beside is not compressed as well: leave one of the two out")
    if given["codecs"] == AUTO and given["all_file"] is not None:
        raise InputError("--all writes the plans of one setting: name one of --codecs")


def _put_out(result: PlanFile, out: Console, output: Path | None, json_output: bool) -> None:
    """Write and show the answer."""
    from planner.terminal.show import show
    from profiles.artifacts import dump
    from profiles.files import write_text

    if output is not None or json_output:
        text = dump("plan", result)
        if output is not None:
            write_text(output, text)
        if json_output:
            console.print_json(text)
    show(result, out, output)


def _compression(recipes_text: str, target: str | None) -> Compression:
    """What models are to be compressed by, and how far.

    Raises: UnknownNameError, InputError.
    """
    from planner.ask import Compression
    from planner.compression.prices import parse_targets
    from planner.compression.recipes import recipes

    return Compression(recipes=recipes(recipes_text), targets=parse_targets(target))


def _words(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(dict.fromkeys(word.strip() for word in text.split(",")))


def _reliability(failure_hours: float | None, checkpoint_seconds: float | None) -> Reliability:
    from planner.space.questions import Reliability

    given = {"failure_hours": failure_hours, "checkpoint_seconds": checkpoint_seconds}
    return Reliability(**{name: value for name, value in given.items() if value is not None})


def main() -> None:
    """The console script `plan`."""
    console.run(app)
