"""`compare`: reads run files or tables of runs, prints prediction against measurement, writes the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.inputs import bounds
from profiles.inputs.foreign import real_path
from profiles.terminal import completion, console
from profiles.version import VersionOption
from reports.reading import check_outputs, in_folders, kind_of, read_groups, refuse, sides_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from profiles.terminal.console import Console
    from reports.comparison import Source
    from reports.published.rows import Row
    from reports.summary import Summary

# Options that are not read for what is compared.
IGNORED = {
    "table": ("machine", "learn", "trt_times", "changes"),
    "rehearsal": ("machine", "tolerance", "device", "cluster", "learn", "trt_times", "changes"),
    "compression": ("machine", "tolerance", "device", "cluster", "learn", "changes"),
    "run": ("device", "cluster", "trt_times"),
}
app = typer.Typer(add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def compare(
    context: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN.JSON|RUNS.CSV|LOG",
            help="What `execute` wrote (runs, folders of them, rehearsals, compressions), pages of runs that this "
            "command wrote, tables of others' runs, or logs of other software.",
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the HTML report here.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            callback=bounds.TOLERANCE,
            help="Exit with 4 if the median error of step times exceeds this fraction, such as 0.15.",
        ),
    ] = None,
    machine: Annotated[
        Path | None, typer.Option(help="Machine profile, to draw the memory that one rank may use.")
    ] = None,
    learn: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Runs: learn how far each part of a step is off here; written if held-out plans improve.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Tables: GPU of rows whose gpu_type is empty, such as h100-sxm.",
            autocompletion=completion.complete_device,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Tables: machine of rows whose hardware columns are empty.",
            autocompletion=completion.complete_cluster,
        ),
    ] = None,
    trt_times: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[RECIPE=]FILE",
            help="Compressions: times that trtexec --exportTimes wrote elsewhere; may be repeated.",
        ),
    ] = None,
    changes: Annotated[
        bool | None,
        typer.Option(
            "--changes/--no-changes",
            help="Runs: show what changed from the first to the second [if they have a model in common].",
        ),
    ] = None,
    version: VersionOption = False,
) -> None:
    """Compare predictions with measurements; with -o as one HTML file that works offline.

    Of two runs, or two folders or pages of runs, it also says what changed from the first to the second, and with what
    effect. Of runs made at several times it says how errors developed.

    A table (.csv) has a header, and one run per line that was measured elsewhere. Each run is predicted from the
    columns of its configuration alone, and compared where the table says what was measured.
    """
    import json

    from profiles.library import read_machine
    from profiles.terminal.options import refuse_ignored
    from reports.changes_terminal import show_over_time
    from reports.report import build
    from reports.terminal import show

    given, runs = runs, in_folders(runs)
    check_outputs({"-o": output, "--learn": learn}, [*runs, *([machine] if machine else [])])
    kind = kind_of(runs)
    refuse_ignored(context, IGNORED[kind], f"{kind}s")
    if kind == "table":
        compare_tables(runs, output, json_output, tolerance, device, cluster)
        return
    if kind != "run":
        compare_pages(kind, runs, output, json_output, trt_times or ())
        return
    groups = read_groups([in_folders([path]) for path in given])
    sources = [source for group in groups for source in group]
    report = build(sources, read_machine(machine) if machine else None, sides_of(given, groups, changes))
    screen = console.console(json_output)
    if output is not None:
        from profiles.files import write_text
        from reports.pages.html import render

        write_text(output, render(report))
    show(report, screen)
    show_over_time(report, screen)
    if output is not None:
        screen.print(f"report: {output}")
    lesson = {"lesson": write_lesson(sources, learn, screen)} if learn is not None else {}
    if json_output:
        console.print_json(json.dumps({**report.to_json(), **lesson}, allow_nan=False))
    if tolerance is not None:
        check_tolerance(report.summary, tolerance)


def write_lesson(sources: Sequence[Source], path: Path, screen: Console) -> dict[str, Any]:
    """Write what runs teach to `path`, where it helps, and say so in a line; the same in JSON types.

    Raises: InputError where the runs are not of one machine that was measured.
    """
    from dataclasses import asdict

    from profiles import artifacts
    from reports.learning import learn

    lesson = learn(sources)
    if lesson.corrections is not None:
        artifacts.write(path, "corrections", lesson.corrections)
    kept = f"; {path} keeps what was learned before" if path.exists() else ""
    screen.print(f"{lesson.sentence}{f': {path}' if lesson.corrections else kept}")
    return asdict(lesson)


def compare_pages(
    kind: str, paths: Sequence[Path], output: Path | None, json_output: bool, trt_times: Sequence[str] = ()
) -> None:
    """Show what `execute` wrote besides runs: rehearsals, or compressed models; of each kind predicted beside found.

    Raises: ArtifactError where a file is missing or damaged.
    """
    import json
    from dataclasses import asdict

    from profiles import artifacts

    if kind == "rehearsal":
        from executor.rehearse.result import RehearsalFile as Content
        from executor.rehearse.show import show
        from reports.pages.rehearsal_page import render
    else:
        from executor.compress.results import CompressionFile as Content  # type: ignore[assignment]
        from executor.compress.show import show  # type: ignore[assignment]
        from reports.pages.compression_page import render  # type: ignore[assignment]
    files = [artifacts.read(path, kind, Content) for path in paths]
    for file in files:
        file.check()
    if trt_times:
        from executor.compress.results import with_times

        files = with_times(files, trt_times)  # type: ignore[arg-type, assignment]
    screen = console.console(json_output)
    if output is not None:
        from profiles.files import write_text

        write_text(output, render(files))
    for file in files:
        show(file, screen)
    if output is not None:
        screen.print(f"report: {output}")
    if json_output:
        console.print_json(json.dumps([asdict(file) for file in files], allow_nan=False))


def compare_tables(
    paths: Sequence[Path],
    output: Path | None,
    json_output: bool,
    tolerance_fraction: float | None,
    device: str | None,
    cluster: str | None,
) -> None:
    """Predict the rows of tables and compare them with what the tables say was measured.

    Raises: InputError where a table cannot be read; ToleranceError where the median error is beyond the tolerance.
    """
    import json

    from reports.published.rows import predict
    from reports.published.summary import in_sample_notes, row_to_json, summarise
    from reports.published.terminal import show

    rows, notes = read_rows(paths, device, cluster)
    runs = predict(rows)
    notes += in_sample_notes([run.row_id for run in runs])
    summary = summarise(runs)
    error = summary.total.median_error_fraction
    if tolerance_fraction is not None:
        refuse(error is None, "--tolerance cannot be checked: no row has both a prediction and a usable step time")
    screen = console.console(json_output)
    if output is not None:
        from profiles.files import write_text
        from reports.published.page import render

        write_text(output, render(runs, summary, " and ".join(path.stem for path in paths), notes))
    show(runs, summary, screen)
    for note in notes:
        screen.print(f"note: {note}")
    if output is not None:
        screen.print(f"report: {output}")
    if json_output:
        result = {"rows": [row_to_json(run) for run in runs], "summary": summary.to_json()}
        console.print_json(json.dumps(result, allow_nan=False))
    if tolerance_fraction is not None:
        _check_error(error or 0.0, tolerance_fraction)


def read_rows(paths: Sequence[Path], device: str | None, cluster: str | None) -> tuple[list[Row], list[str]]:
    """The rows of tables with empty hardware columns filled in, and notes that say what with.

    Raises: InputError where a table, the device or the cluster cannot be read, or a table is given twice.
    """
    from reports.published.hardware import hardware_columns
    from reports.published.jobs import read_jobs
    from reports.published.rows import read_tables

    resolved = [real_path(path) for path in paths]
    refuse(len(set(resolved)) < len(resolved), "a table is given twice; give each table once")
    fill, notes = hardware_columns(device, cluster)
    tables = [path for path in paths if path.suffix.lower() == ".csv"]
    rows, more = read_jobs([path for path in paths if path not in tables], fill)
    return [*read_tables(tables, fill), *rows], [*notes, *more]


def check_tolerance(summary: Summary, tolerance_fraction: float) -> None:
    """Hold the median error of step times against the tolerance, and what plans train against one device.

    Raises: ToleranceError where either is broken; InputError where no run can be judged.
    """
    from profiles.errors import InputError, ToleranceError

    if summary.num_failed_loss_checks:
        raise ToleranceError(
            f"{summary.num_failed_loss_checks} of {summary.num_runs} plans do not train as one device would; "
            "see the losses column of the report"
        )
    error = summary.median_error_fraction
    if error is None:
        raise InputError("--tolerance cannot be checked: every run had more ranks than cores or a busy machine")
    _check_error(error, tolerance_fraction)


def _check_error(error_fraction: float, tolerance_fraction: float) -> None:
    from profiles.errors import ToleranceError
    from profiles.units import format_percent

    if error_fraction > tolerance_fraction:
        raise ToleranceError(
            f"the median error of step times is {format_percent(error_fraction)}, more than the "
            f"{format_percent(tolerance_fraction)} asked for; the report shows which parts are off"
        )


def main() -> None:
    """The console script `compare`."""
    console.run(app)
