"""The report in a terminal: the verdict, one table that fits 80 columns, and the warnings."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from profiles.terminal.tables import plain_table, print_table
from profiles.units import format_percent, format_seconds
from reports.comparison import Row
from reports.frames import labels_of
from reports.report import Report
from reports.summary import Finding, verdict

COLOURS = {"good": "green", "fair": "yellow", "bad": "red", "plain": "default"}


def show(report: Report, console: Console) -> None:
    """Print the report."""
    print_table(plans_table(report.rows), console, named_by=1)
    legend = "error = predicted / measured - 1; spread = middle half of the steps / median"
    brackets = "" if all(row.is_judged for row in report.rows) else "; (error): not judged"
    console.print(f"{legend}{brackets}", style="dim")
    for case in report.cases:
        if len(report.cases) > 1:
            console.print(f"\n{case.name}", style="bold")
        for finding in verdict(case):
            say(finding, console)
    for warning in report.warnings:
        say(Finding(tone="fair", text=warning), console)


def say(finding: Finding, console: Console) -> None:
    """Print one sentence of a verdict in its colour."""
    console.print(Text.assemble(("*", COLOURS[finding.tone]), f" {finding.text}"))


def plans_table(rows: tuple[Row, ...]) -> Table:
    """One line per plan: times, error, memory, losses."""
    table = plain_table()
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("plan")
    for name in ("predicted", "measured", "spread", "error", "GiB predicted, measured"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("losses")
    for label, row in zip(labels_of(rows), rows, strict=True):
        memory = row.measured_peak_bytes
        error = format_percent(row.error_fraction, signed=True)
        table.add_row(
            str(row.run.rank),
            label + (" (baseline)" if row.run.is_baseline else ""),
            format_seconds(row.predicted_seconds),
            format_seconds(row.measured_seconds),
            format_percent(row.measured.spread_fraction),
            error if row.is_judged else f"({error})",
            f"{row.predicted_peak_bytes / 2**30:.3g}, {'-' if memory is None else f'{memory / 2**30:.3g}'}",
            row.run.measurement.loss_check.status,
        )
    return table
