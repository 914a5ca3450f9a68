"""What changed, and how errors went over time, in a terminal: tables that fit 80 columns, and sentences."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from profiles.terminal.tables import plain_table, print_table
from profiles.units import format_percent, format_seconds
from reports.changes import Changes
from reports.changes_words import ARROW, findings
from reports.facts import value_words
from reports.history import History
from reports.outcomes import Outcome, Standing
from reports.report import Report
from reports.terminal import say


def show_over_time(report: Report, console: Console) -> None:
    """Print what changed between two sides, and how errors went over more runs than two."""
    if report.changes is not None:
        show_changes(report.changes, console)
    if report.history is not None and len(report.history.moments) > 2:
        show_history(report.history, console)


def show_changes(changes: Changes, console: Console) -> None:
    """Print what differs, what came of it, and the sentences about both."""
    console.print(f"\nWhat changed from {changes.before.name} to {changes.after.name}", style="bold")
    if changes.facts:
        print_table(facts_table(changes), console)
        console.print()
    if changes.outcomes:
        print_table(outcomes_table(changes), console)
        console.print("error = predicted / measured - 1; * beyond the spread of its steps; (): not judged", style="dim")
    for finding in findings(changes):
        say(finding, console)


def facts_table(changes: Changes) -> Table:
    """One line per fact that differs."""
    table = plain_table()
    table.add_column("what", no_wrap=True)
    table.add_column("before")
    table.add_column("after")
    for change in changes.facts:
        table.add_row(change.name, value_words(change.before), value_words(change.after))
    return table


def outcomes_table(changes: Changes) -> Table:
    """One line per plan of both sides: steps, memory and error before and after."""
    table = plain_table()
    table.add_column("plan")
    for name in ("step before", "after", "change", "predicted", "GiB", "error in %"):
        table.add_column(name, justify="right", no_wrap=True)
    for outcome in changes.outcomes:
        table.add_row(*outcome_cells(outcome))
    return table


def outcome_cells(outcome: Outcome) -> tuple[str, ...]:
    """The cells of one plan."""
    before, after = outcome.before, outcome.after
    change = format_percent(outcome.step_change_fraction, signed=True)
    mark = "*" if outcome.is_beyond_spread else ""
    predicted = (
        "same" if outcome.is_time_predicted_alike else format_percent(outcome.predicted_change_fraction, signed=True)
    )
    return (
        _moved(before.label, after.label),
        format_seconds(before.measured_seconds),
        format_seconds(after.measured_seconds),
        f"{change}{mark}" if outcome.is_judged else f"({change}{mark})",
        predicted,
        _moved(_gibibytes(before), _gibibytes(after)),
        _moved(_error(before), _error(after)),
    )


def show_history(history: History, console: Console) -> None:
    """Print the trend, and where versions changed."""
    console.print("\nErrors over time", style="bold")
    console.print(history.sentence)
    for mark in history.marks:
        console.print(f"{mark.started:%Y-%m-%d %H:%M}  {mark.words}")
    if history.undated:
        console.print(f"left out for lack of a date: {', '.join(history.undated)}")


def _gibibytes(standing: Standing) -> str:
    measured = standing.measured_peak_bytes
    return "-" if measured is None else f"{measured / 2**30:.3g}"


def _error(standing: Standing) -> str:
    text = f"{standing.error_fraction * 100:+.1f}"
    return text if standing.is_judged else f"({text})"


def _moved(before: str, after: str) -> str:
    """Both texts with an arrow between, or the one where they are the same."""
    return before if before == after else f"{before} {ARROW} {after}"
