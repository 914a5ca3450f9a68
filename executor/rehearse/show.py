"""A rehearsal as people read it: one table per plan, one line per quantity of each rank. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from executor.rehearse.result import Difference, PlanRehearsal, RehearsalFile, differences
from profiles.units import format_bytes, format_count, format_percent, format_seconds

if TYPE_CHECKING:
    from rich.console import Console


def show(file: RehearsalFile, out: Console, output: Path | None = None) -> None:
    """Print what the ranks would do beside what was expected of them."""
    from profiles.terminal.tables import plain_table, print_table

    out.print(
        f"{file.model_name} ({format_count(file.num_parameters)} parameters) on {file.num_devices} ranks, rehearsed "
        f"with torch {file.torch}: one step of {file.global_batch_size} x {file.sequence_length} tokens, nothing "
        "computed, nothing sent"
    )
    for own in file.plans:
        out.print(f"\n#{own.rank} {own.plan.id}")
        table = plain_table()
        table.add_column("rank", justify="right", no_wrap=True)
        table.add_column("per step")
        for name in ("expected", "rehearsed", "off"):
            table.add_column(name, justify="right", no_wrap=True)
        for cells in rows(own):
            table.add_row(*cells)
        print_table(table, out, named_by=1)
        for rank in own.ranks:
            done = rank.rehearsed
            place = ", ".join(f"{axis} {index}" for axis, index in done.place.items() if own.plan.degree(axis) > 1)
            out.print(
                f"rank {done.rank} ({place or 'alone'}): {done.num_operators} operators in "
                f"{format_seconds(done.seconds)}"
            )
    for words in verdict(file):
        out.print(words)
    for note in file.notes:
        out.print(f"note: {note}")
    if output is not None:
        out.print(f"written to {output}; see it with: compare {output} -o report.html")


def rows(own: PlanRehearsal) -> Iterator[tuple[str, str, str, str, str]]:
    """The table's cells: rank, quantity, expected, rehearsed, and how far the former is off."""
    for rank in own.ranks:
        for number, difference in enumerate(differences(rank)):
            name = str(rank.rehearsed.rank) if number == 0 else ""
            yield name, difference.what, *values(difference)


def values(difference: Difference) -> tuple[str, str, str]:
    """Expected, rehearsed, and off, marked where it is more than it should be."""
    known = difference.rehearsed > 0
    off = format_percent(difference.fraction, signed=True) if known else "not sent"
    return (
        _amount(difference.expected, difference.unit),
        _amount(difference.rehearsed, difference.unit),
        off if difference.is_within else f"{off} !",
    )


def _amount(value: float, unit: str) -> str:
    return format_bytes(value) if unit == "B" else f"{format_count(value)}FLOP"


def verdict(file: RehearsalFile) -> list[str]:
    """Whether the ranks would do what was expected, in words."""
    lines = []
    for own in file.plans:
        off = [(rank.rehearsed.rank, d) for rank in own.ranks for d in differences(rank) if not d.is_within]
        count = f"{len(own.ranks)} rank{'' if len(own.ranks) == 1 else 's'}"
        if not off:
            lines.append(f"#{own.rank} runs on the {count} rehearsed, as expected")
            continue
        words = "; ".join(f"rank {rank} {d.what} {values(d)[2].removesuffix(' !')}" for rank, d in off)
        lines.append(f"#{own.rank} runs on the {count} rehearsed; differs from the expectation: {words}")
    return lines
