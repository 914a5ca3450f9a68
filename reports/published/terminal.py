"""A table of published runs in a terminal: errors by family in 80 columns, the worst rows, refusals, assumptions."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from profiles.terminal.tables import plain_table, print_table
from profiles.units import format_percent, format_seconds
from reports.published.rows import PublishedRun
from reports.published.summary import Errors, PublishedSummary, verdict
from reports.terminal import say

NUM_WORST, NUM_REASONS, NUM_ASSUMPTIONS, NUM_FAMILIES = 5, 12, 20, 40


def show(runs: Sequence[PublishedRun], summary: PublishedSummary, console: Console) -> None:
    """Print the summary."""
    print_table(families_table(summary), console)
    console.print(
        "error = predicted / measured - 1, absolute; bias: signed mean; in band: share of measured times in the "
        "90 % band; memory: median error. All: every family has the same weight.",
        style="dim",
    )
    for finding in verdict(summary):
        say(finding, console)
    worst = sorted((run for run in runs if run.is_judged), key=lambda run: -abs(run.error_fraction or 0.0))[:NUM_WORST]
    if worst:
        console.print("\nFarthest off", style="bold")
        print_table(worst_table(worst), console, named_by=1)
    _list("Refused", "row", summary.refusals, NUM_REASONS, console)
    _list("Assumed for empty columns", "row", summary.assumptions, NUM_ASSUMPTIONS, console)


def families_table(summary: PublishedSummary) -> Table:
    """One line per family, and one for all."""
    table = plain_table()
    table.add_column("family")
    for name in ("rows", "judged", "median", "90th pct", "bias", "in band", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    families = list(summary.families.items())
    for name, errors in families[:NUM_FAMILIES]:
        table.add_row(name, *_cells(errors))
    if len(families) > NUM_FAMILIES:
        table.add_row(f"{len(families) - NUM_FAMILIES} more families", style="dim")
    if len(families) > 1:
        table.add_row("all", *_cells(summary.total), style="bold")
    return table


def _cells(errors: Errors) -> list[str]:
    return [
        str(errors.num_rows),
        str(errors.num_compared),
        _percent(errors.median_error_fraction),
        _percent(errors.p90_error_fraction),
        _percent(errors.bias_fraction, signed=True),
        "-" if errors.inside_band_fraction is None else f"{errors.inside_band_fraction * 100:.0f} %",
        _percent(errors.median_memory_error_fraction),
    ]


def _percent(fraction: float | None, signed: bool = False) -> str:
    return "-" if fraction is None else format_percent(fraction, signed=signed)


def worst_table(runs: Sequence[PublishedRun]) -> Table:
    """Predicted and measured step time of some rows."""
    table = plain_table()
    table.add_column("row")
    table.add_column("family")
    for name in ("predicted", "measured", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            run.row_id,
            run.family,
            format_seconds(run.forecast.step_seconds or 0.0),
            format_seconds(run.measured_seconds or 0.0),
            _percent(run.error_fraction, signed=True),
        )
    return table


def _list(title: str, unit: str, counts: Sequence[tuple[str, int]], limit: int, console: Console) -> None:
    if not counts:
        return
    console.print(f"\n{title}", style="bold")
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for text, count in counts[:limit]:
        table.add_row(f"{count} {unit}{'' if count == 1 else 's'}", text)
    if len(counts) > limit:
        table.add_row("", f"and {len(counts) - limit} more kinds", style="dim")
    console.print(table)
