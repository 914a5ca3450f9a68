"""`execute`: checks a plan file, runs its best plans, writes the run file, prints predicted against measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from executor.options import NEEDS, RUN, TAKES
from profiles import artifacts
from profiles.inputs import bounds
from profiles.terminal import console
from profiles.terminal.completion import completing
from profiles.terminal.options import check_options, refuse_ignored
from profiles.version import VersionOption
from profiles.workloads.module_options import TracebackOption, TrustOption

if TYPE_CHECKING:
    from rich.console import Console

    from executor.emit import JobOptions


def _job_kinds() -> tuple[str, ...]:
    from executor.emit import KINDS

    return tuple(KINDS)


def _engine_names() -> tuple[str, ...]:
    from executor.engines import ENGINES

    return tuple(ENGINES)


app = typer.Typer(add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def execute(
    context: typer.Context,
    plan: Annotated[Path, typer.Argument(help="A plan file, as `plan -o` writes it.")],
    steps: Annotated[
        int, typer.Option(callback=bounds.STEPS, help="Timed steps per plan, including those before a checkpoint.")
    ] = 20,
    warmup: Annotated[
        int,
        typer.Option(callback=bounds.STEPS_OR_NONE, help="Untimed steps before the timed ones; at least 3 are run."),
    ] = 3,
    top: Annotated[
        int, typer.Option(callback=bounds.SHOWN, help="Number of the file's best plans to run, in turns.")
    ] = 1,
    with_baseline: Annotated[bool, typer.Option(help="Run plain data parallel as well, where it is legal.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Data to train on: text, or images as .npz [Python's help topics; digits].")
    ] = None,
    seed: Annotated[int, typer.Option(callback=bounds.SEED, help="Random seed of the weights and the data order.")] = 0,
    oversubscribe: Annotated[bool, typer.Option(help="Allow more CPU ranks than cores.")] = False,
    rehearse: Annotated[
        bool, typer.Option(help="Go through one rank's program without computing or sending, and count.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(callback=bounds.RANK, help="Rank to rehearse [the first of the fullest stage].")
    ] = None,
    all_stages: Annotated[bool, typer.Option(help="Rehearse the first rank of every pipeline stage.")] = False,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Engine: trainwright, deepspeed or horovod; repeat it to run several in turns [trainwright].",
            autocompletion=completing(_engine_names),
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check that the plans train as a plain loop does.")
    ] = False,
    train: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Train by the best plan with these settings: optimizer, schedule, data, evaluation.",
        ),
    ] = None,
    compress: Annotated[
        bool,
        typer.Option("--compress", help="Run the plan's compressed models: train, compress, train further, judge."),
    ] = False,
    more_steps: Annotated[
        int | None,
        typer.Option(
            callback=bounds.STEPS_OR_NONE, help="Training steps of each compressed model [as many as --steps]."
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the compressed models here as ONNX, and time them.")
    ] = None,
    runtimes: Annotated[
        str | None,
        typer.Option(help="Runtimes to time exported models in: onnxruntime, openvino, tensorrt [all installed]."),
    ] = None,
    compiled: Annotated[bool, typer.Option(help="Time the compressed models under torch.compile too.")] = False,
    emit: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Write a job file: torchrun, slurm, slurm-profile, slurm-all, kubeflow, skypilot or ray.",
            autocompletion=completing(_job_kinds),
        ),
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(callback=bounds.RANKS, help="Ranks per node in a job file.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Container image for the job.")] = None,
    install: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Where a job installs this program from: a path, git+URL@COMMIT, NAME==1.0."
        ),
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A setting of a Slurm job: account=ours, time=04:00:00; may be repeated."
        ),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the run and its log here; `compare DIR` reads them."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(metavar="DIR", help="Save checkpoints here.")] = None,
    checkpoint_every: Annotated[int, typer.Option(callback=bounds.STEPS, help="Steps between checkpoints.")] = 10,
    resume: Annotated[bool, typer.Option(help="Resume from the newest checkpoint, even of another layout.")] = False,
    max_restarts: Annotated[
        int, typer.Option(callback=bounds.RESTARTS, help="Restart the ranks up to this many times if one dies.")
    ] = 0,
    trace: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a profiled step of every rank here, for Perfetto.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(callback=bounds.TIMEOUT, help="Seconds that a rank waits for another in a step.")
    ] = 600.0,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print a log line per block of steps.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the run file on standard output.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the run file here.")] = None,
    trust_module: TrustOption = None,
    traceback: TracebackOption = False,
    version: VersionOption = False,
) -> None:
    """Run the best plans of PLAN on real processes and measure what was predicted.

    Starts the ranks on this machine, or joins them where torchrun or srun started this command. With --rehearse nothing
    is run: one rank of a job of any size goes through its program, and shapes, FLOPs, messages and memory are counted.
    """
    check_options(context, NEEDS, TAKES)
    trusted, engines = tuple(trust_module or ()), tuple(engine or ())
    if emit is not None:
        from executor.emit import JobOptions, words_of_options

        words = words_of_options(
            steps=steps, warmup=warmup, top=top, with_baseline=with_baseline, data=data, seed=seed, runs=runs,
            oversubscribe=oversubscribe, checkpoint=checkpoint, resume=resume, timeout=timeout, trace=trace,
            checkpoint_every=checkpoint_every if checkpoint else None, trust_module=trusted, verbose=verbose,
            engine=engines,
        )  # fmt: skip
        job_options = JobOptions(
            arguments=(*words, "-o", "run.json"), gpus_per_node=gpus_per_node, image=image, install=install,
            max_restarts=max_restarts, sbatch=tuple(sbatch or ()),
        )  # fmt: skip
        refuse_ignored(context, RUN if emit == "slurm-profile" else (), "a job that measures a machine")
        _emit(plan, emit, job_options, trusted, engines, output)
        return
    if rehearse:
        _rehearse(plan, top, rank, all_stages, json_output, output, trusted)
        return
    out = _ready_to_run(plan, json_output, output)
    from executor.run.check_command import run_checks
    from executor.run.checkpoint import checkpoints_of
    from executor.run.prepare import RunOptions, prepare
    from executor.run.run_command import run

    if compress:
        from executor.compress.compress_command import compress_models
        from executor.compress.job import Extras

        asked = RunOptions(steps=steps, data=data, seed=seed, oversubscribe=oversubscribe, timeout=timeout)
        extras = Extras(more_steps=more_steps, export=export, runtimes=runtimes, compiles=compiled)
        compress_models(plan, extras, asked, out, json_output, output)
        return
    checkpoints = checkpoints_of(checkpoint, checkpoint_every, resume, max_restarts)
    options = RunOptions(
        steps=steps, warmup=warmup, top=top, with_baseline=with_baseline, data=data, seed=seed,
        oversubscribe=oversubscribe, checkpoints=checkpoints, max_restarts=max_restarts, timeout=timeout, trace=trace,
        trusted=trusted, runs=runs, train=train, engines=engines,
    )  # fmt: skip
    if check:
        run_checks(prepare(plan, options), out, json_output)
    else:
        run(prepare(plan, options), out, verbose, json_output, output, runs)


def _ready_to_run(plan: Path, json_output: bool, output: Path | None) -> Console:
    """Where to write what is said, of a process from which ranks can be forked and that may write its result."""
    from profiles.files import ensure_writable
    from profiles.ranks.environment import check_system
    from profiles.ranks.forked import restart_for_ranks

    check_system()
    # Before libraries are loaded, which takes seconds.
    artifacts.check_kind(plan, "plan")
    restart_for_ranks()
    if output is not None:
        ensure_writable(output)
    return console.console(json_output)


def _emit(
    plan: Path,
    kind: str,
    options: JobOptions,
    trusted: tuple[str, ...],
    engines: tuple[str, ...],
    output: Path | None,
) -> None:
    from executor.emit import emit
    from executor.legality import checked
    from profiles.files import ensure_writable, write_text
    from profiles.workloads.trust import check_trusted

    if output is not None:
        ensure_writable(output)
    file, candidate, unchecked = checked(plan, engines)
    check_trusted(file.workload, trusted, str(plan))
    # A job may start in another folder; a container sees only what lies under the one that it starts in.
    is_found_anywhere = kind.startswith("slurm") and options.image is None
    text = emit(kind, file, candidate, str(plan.absolute().resolve() if is_found_anywhere else plan), options)
    if unchecked:
        note = f"note: {unchecked}, so what depends on its layers is checked where the job starts"
        console.console(json_output=True).print(note)
    if output is None:
        console.print_json(text)
    else:
        write_text(output, text)
        console.console().print(f"written to {output}")


def _rehearse(
    plan: Path,
    top: int,
    rank: int | None,
    all_stages: bool,
    json_output: bool,
    output: Path | None,
    trusted: tuple[str, ...],
) -> None:
    from profiles.ranks.environment import check_system

    check_system()
    artifacts.check_kind(plan, "plan")
    from executor.rehearse.all_ranks import rehearse_file
    from executor.rehearse.show import show
    from profiles.artifacts import dump
    from profiles.files import ensure_writable, write_text

    out = console.console(json_output)
    if output is not None:
        ensure_writable(output)
    with console.progress(out, "rehearsing") as advance:
        file = rehearse_file(plan, top, rank, all_stages, advance, trusted, out.print)
    text = dump("rehearsal", file)
    if output is not None:
        write_text(output, text)
    if json_output:
        console.print_json(text)
    show(file, out, output)


def main() -> None:
    """The console script `execute`."""
    console.run(app)
