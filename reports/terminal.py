"""The report in a terminal: the verdict, one table that fits 80 columns, and the warnings."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from profiles.units import format_percent, format_seconds
from reports.comparison import Row
from reports.frames import byte_text, labels_of
from reports.report import Report
from reports.summary import Finding, verdict

COLOURS = {"good": "green", "fair": "yellow", "bad": "red", "plain": "default"}


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print(plans_table(report.rows))
    legend = "error = predicted / measured - 1; spread = middle half of the steps / median"
    brackets = "" if all(row.is_judged for row in report.rows) else "; (error): not judged"
    console.print(f"[dim]{legend}{brackets}[/dim]")
    for case in report.cases:
        if len(report.cases) > 1:
            console.print(f"\n[bold]{escape(case.name)}[/bold]")
        for finding in verdict(case):
            _say(finding, console)
    for warning in report.warnings:
        _say(Finding(tone="fair", text=warning), console)


def _say(finding: Finding, console: Console) -> None:
    console.print(f"[{COLOURS[finding.tone]}]*[/] {escape(finding.text)}", highlight=False)


def plans_table(rows: tuple[Row, ...]) -> Table:
    """One line per plan: times, error, memory, losses."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("plan", overflow="fold", min_width=14)
    for name in ("predicted", "measured", "spread", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("memory\npredicted", justify="right", no_wrap=True)
    table.add_column("\nmeasured", justify="right")
    table.add_column("losses", no_wrap=True)
    for label, row in zip(labels_of(rows), rows, strict=True):
        memory = row.measured_peak_bytes
        error = format_percent(row.error_fraction, signed=True)
        table.add_row(
            str(row.run.rank),
            escape(label) + (" [dim]baseline[/dim]" if row.run.is_baseline else ""),
            format_seconds(row.predicted_seconds),
            format_seconds(row.measured_seconds),
            format_percent(row.measured.spread_fraction),
            error if row.is_judged else f"[dim]({error})[/dim]",
            byte_text(row.predicted_peak_bytes),
            "-" if memory is None else byte_text(memory),
            escape(row.run.measurement.loss_check.status),
        )
    return table
