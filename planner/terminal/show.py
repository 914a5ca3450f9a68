"""The answer of `plan` as people read it: on a narrow terminal, and through a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from planner.prediction import PlanFile


def show(result: PlanFile, out: Console, output: Path | None) -> None:
    """Print the table of plans with what goes before and after it."""
    from planner.terminal.show_answers import lines, memory_words, notes
    from profiles.terminal.tables import print_table
    from profiles.units import format_batch, format_bytes, format_count

    best = result.candidates[0]
    # A name of pools counts their devices itself.
    where = result.machine_name if " + " in result.machine_name else f"{result.num_devices} x {result.machine_name}"
    out.print(
        f"{result.model_name} ({format_count(result.num_parameters)} parameters) on {where}, "
        f"global batch {format_batch(result.global_batch_size, result.sequence_length, result.size_unit)}"
    )
    for note in (*result.notes, *notes(result.answers)):
        out.print(f"note: {note}")
    print_table(_plans(result), out, named_by=1)
    if any(candidate.num_folded for candidate in result.candidates):
        out.print("like a plan: those that are no faster and differ in one choice alone; --json and -o have them all")
    out.print(f"MFU of {best.prediction.mfu_denominator}; {'; '.join(best.prediction.assumptions)}")
    out.print(f"memory of the best plan's fullest rank: {memory_words(best.prediction)}")
    outside = best.prediction.bytes_per_rank.get("outside", 0.0)
    if outside > 0:
        out.print(f"outside torch's allocator: {format_bytes(outside)}, for the CUDA context and NCCL's communicators")
    rejected = "; ".join(_rejected(result))
    out.print(
        f"{result.num_legal:,} legal plans priced" + (f"; not legal or not fitting: {rejected}" if rejected else "")
    )
    if result.compression:
        _show_compression(result, out)
    for line in lines(result):
        out.print(line)
    if output is not None:
        out.print(f"written to {output}; {next_step(result, output)}")


def _rejected(result: PlanFile) -> Iterator[str]:
    """Plans that are not in the table by reason, those together that the software lacks something for."""
    from planner.stacks.abilities import lacked

    lacking = {what: count for reason, count in result.rejected.items() if (what := lacked(reason, result.stack))}
    for reason, count in result.rejected.items():
        if not lacked(reason, result.stack):
            yield f"{count:,} {reason}"
    if lacking:
        needs = ", ".join(f"{what} ({count:,})" for what, count in lacking.items())
        yield f"{sum(lacking.values()):,} need what {result.stack} lacks: {needs}"


def _plans(result: PlanFile) -> Table:
    """The table of plans."""
    from planner.terminal.show_answers import like_it
    from profiles.machines.stacks import THIS_PROGRAM
    from profiles.terminal.tables import plain_table
    from profiles.units import format_count, format_percent, format_seconds, rate_of

    is_for_others = result.stack != THIS_PROGRAM
    table = plain_table()
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("plan")
    counted, _ = rate_of(0.0, result.sequence_length, result.size_unit)
    for name in ("step", counted, "MFU", "GiB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", min_width=20)
    for candidate in (candidate for candidate in result.candidates if not candidate.folded_into):
        prediction = candidate.prediction
        half = (prediction.high_seconds - prediction.low_seconds) / 2 / prediction.step_seconds
        table.add_row(
            str(candidate.rank),
            candidate.plan.id,
            f"{format_seconds(prediction.step_seconds)} ±{half:.0%}",
            format_count(rate_of(prediction.tokens_per_second, result.sequence_length, result.size_unit)[1]),
            format_percent(prediction.mfu),
            f"{prediction.peak_bytes / 2**30:.3g}",
            candidate.verdict
            + ("" if candidate.executable or is_for_others else " (simulate only)")
            + like_it(candidate),
        )
    return table


def next_step(result: PlanFile, output: Path) -> str:
    """What can be done with the plan file: `execute` runs its best plan that is not simulate only."""
    from profiles.machines.stacks import THIS_PROGRAM

    if result.stack != THIS_PROGRAM:
        return f"its plans are for {result.stack}"
    best = next((candidate for candidate in result.candidates if candidate.executable), None)
    if best is None:
        return "no plan in it can be run (simulate only): plan again without --simulate for plans that can"
    if best is result.candidates[0]:
        return f"run it with: execute {output}"
    return f"the best is simulate only; run plan {best.rank}, the best that can be run, with: execute {output}"


def _show_compression(result: PlanFile, out: Console) -> None:
    """Compressed models beside the model as it is; those that no other beats are marked."""
    from planner.compression.shown import FRONT, JUDGED_BY, MISSES, NUMBERS, QUALITY, cells, marked
    from profiles.terminal.tables import plain_table, print_table

    table = plain_table()
    table.add_column("", no_wrap=True)
    table.add_column("compression", no_wrap=True)
    for name in NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(QUALITY, min_width=24)
    for choice in result.compression:
        table.add_row(marked(choice, "*", "-"), choice.recipe.name, *cells(choice))
    print_table(table, out, named_by=1)
    out.print(f"* {FRONT}; - {MISSES}; {JUDGED_BY}")
