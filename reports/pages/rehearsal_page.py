"""The page about rehearsals: one file that works offline, tables alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from executor.rehearse.result import PlanRehearsal, RehearsalFile, differences
from executor.rehearse.show import rows, verdict
from profiles.pages.html import Table
from profiles.pages.tables_page import tables_page
from profiles.units import format_seconds

HEADER = ("rank", "per step", "expected", "rehearsed", "off")


def render(files: Sequence[RehearsalFile]) -> str:
    """The whole page as HTML text."""
    return tables_page(
        kicker="Expected and rehearsed",
        title=" and ".join(dict.fromkeys(file.model_name for file in files)),
        verdict=[pair for file in files for pair in _toned(file)],
        notes=[note for file in files for note in file.notes],
        tables=[(f"#{own.rank} {own.plan.id}", _table(file, own)) for file in files for own in file.plans],
    )


def _toned(file: RehearsalFile) -> Iterator[tuple[str, str]]:
    for own, words in zip(file.plans, verdict(file), strict=True):
        agrees = all(difference.is_within for rank in own.ranks for difference in differences(rank))
        yield "good" if agrees else "fair", words


def _table(file: RehearsalFile, own: PlanRehearsal) -> Table:
    seconds = sum(rank.rehearsed.seconds for rank in own.ranks)
    return Table(
        caption=(
            f"Each line is one of {file.num_devices} ranks in a step of {file.global_batch_size} x "
            f"{file.sequence_length} tokens, with torch {file.torch}: nothing computed, nothing sent; rehearsed in "
            f"{format_seconds(seconds)}. Bytes are those of the whole tensors that a collective works on; memory is "
            "that of live tensors."
        ),
        header=HEADER,
        rows=tuple(rows(own)),
    )
