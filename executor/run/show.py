"""A run as people read it: a table of predicted against measured. Torch-free."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from executor.run.beside import ratios
from executor.run.measurement import busy_words
from profiles.units import format_batch, format_count, format_percent, format_seconds, rate_of

if TYPE_CHECKING:
    from rich.console import Console

    from executor.run.measurement import PlanRun, RunFile


def show(result: RunFile, num_devices: int, out: Console, output: Path | None) -> None:
    """Predicted against measured, one plan a row."""
    from profiles.terminal.tables import plain_table, print_table

    out.print(
        f"{result.model_name} ({format_count(result.num_parameters)} parameters) on {num_devices} x "
        f"{result.environment.device}, {result.environment.backend}, torch {result.environment.torch}; global batch "
        f"{format_batch(result.global_batch_size, result.sequence_length, result.size_unit)}"
    )
    table = plain_table()
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("plan")
    counted, _ = rate_of(0.0, result.sequence_length, result.size_unit)
    for name in ("predicted", "measured", "error", counted, "GiB predicted, measured"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("losses")
    for run in result.runs:
        table.add_row(*_row(run, result))
    print_table(table, out, named_by=1)
    for ratio in ratios(result.runs):
        out.print(str(ratio))
    for note in result.notes:
        out.print(f"note: {note}")
    if words := busy_words(result.runs):
        out.print(f"note: {words}: their times are shown but not judged")
    if output is not None:
        out.print(f"written to {output}; see it with: compare {output} -o report.html")


def _row(run: PlanRun, result: RunFile) -> tuple[str, ...]:
    measured, predicted = run.measurement, run.prediction
    middle = statistics.median(measured.step_seconds)
    check = measured.loss_check
    difference = check.largest_difference_fraction
    error = format_percent(predicted.step_seconds / middle - 1, signed=True)
    is_judged = not result.environment.why_not_judged(measured.load)
    by = f" by {run.engine_words}" if run.engine_words else ""
    return (
        str(run.rank),
        run.plan.id + (" (baseline)" if run.is_baseline else "") + by,
        format_seconds(predicted.step_seconds),
        f"{format_seconds(middle)} ±{_spread_fraction(measured.step_seconds):.0%}",
        error if is_judged else f"({error})",
        format_count(rate_of(measured.tokens_per_second, result.sequence_length, result.size_unit)[1]),
        f"{predicted.peak_bytes / 2**30:.3g}, {max(measured.peak_bytes) / 2**30:.3g}",
        check.status + ("" if difference is None else f" ({difference:.0e})"),
    )


def _spread_fraction(seconds: tuple[float, ...]) -> float:
    """Half the distance between the quartiles over the median."""
    if len(seconds) < 2:
        return 0.0
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive")
    return (quartiles[2] - quartiles[0]) / 2 / quartiles[1]
