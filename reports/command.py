"""`compare`: reads run files, prints prediction against measurement, writes the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiles import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reports.comparison import Source
    from reports.summary import Summary

app = typer.Typer(add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN.JSON", help="Run files that `execute` wrote.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the HTML report here.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable result on standard output.")] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Exit with 4 where the median error of step times exceeds this fraction, as 0.15."),
    ] = None,
    machine: Annotated[
        Path | None, typer.Option(help="Machine profile, to draw the memory that one rank may use.")
    ] = None,
) -> None:
    """Compare predictions with measurements; with -o as one HTML file that works offline."""
    import json

    from profiles import artifacts
    from profiles.cluster import MachineProfile
    from reports.report import build
    from reports.terminal import show

    if output is not None:
        _check_output(output, [*runs, *([machine] if machine else [])])
    sources = read_sources(runs)
    report = build(sources, artifacts.read(machine, "machine-profile", MachineProfile) if machine else None)
    screen = console.console(json_output)
    if output is not None:
        from reports.html import render

        artifacts.write_text(output, render(report))
    show(report, screen)
    if output is not None:
        screen.print(f"report: {output}", markup=False, highlight=False, soft_wrap=True)
    if json_output:
        console.print_json(json.dumps(report.to_json(), allow_nan=False))
    if tolerance is not None:
        check_tolerance(report.summary, tolerance)


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """The run files, each under its shortest distinct name.

    Raises: ArtifactError where a file is missing, damaged or no run; InputError where one is given twice.
    """
    from executor.measurement import RunFile
    from profiles import artifacts
    from profiles.errors import InputError
    from reports.comparison import Source

    resolved = [path.resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise InputError(f"{path} is given twice; give each run once")
    names = [path.name for path in paths]
    are_distinct = len(set(names)) == len(names)
    return [
        Source(name=path.name if are_distinct else str(path), file=artifacts.read(path, "run", RunFile))
        for path in paths
    ]


def check_tolerance(summary: Summary, tolerance_fraction: float) -> None:
    """Hold the median error of step times against the tolerance, and the losses against one device.

    Raises: ToleranceError where either is broken; InputError where no run can be judged.
    """
    from profiles.errors import InputError, ToleranceError
    from profiles.units import format_percent

    if summary.num_failed_loss_checks:
        raise ToleranceError(
            f"the losses of {summary.num_failed_loss_checks} of {summary.num_runs} plans differ from one device; "
            "see the losses column of the report"
        )
    error = summary.median_error_fraction
    if error is None:
        raise InputError("--tolerance cannot be checked: every run had more ranks than cores; run with fewer ranks")
    if error > tolerance_fraction:
        raise ToleranceError(
            f"the median error of step times is {format_percent(error)}, more than the "
            f"{format_percent(tolerance_fraction)} asked for; the report shows which parts are off"
        )


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    from profiles.errors import InputError

    if output.is_dir():
        raise InputError(f"{output} is a folder; give -o the name of the HTML file to write")
    if output.resolve() in [path.resolve() for path in inputs]:
        raise InputError(f"-o {output} would overwrite an input; give another name, such as report.html")


def main() -> None:
    """The console script `compare`."""
    console.run(app)


if __name__ == "__main__":
    main()
