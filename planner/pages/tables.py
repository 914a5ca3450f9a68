"""The tables of a plan's page, as text: each figure has one, so that nothing can be seen only in a drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planner.answers import Change
from planner.compression.recipes import CompressionChoice
from planner.compression.shown import FRONT, JUDGED_BY, MISSES, NUMBERS, QUALITY, cells, marked
from planner.pages.machine_drawing import Drawing
from planner.pages.plan_rows import FILTERS
from planner.pages.styles import PART_STYLES
from planner.prediction import Candidate, Span
from planner.published.resembling import Resembling
from planner.space.grounds import Ground
from planner.space.memory_by_layer import HeldBytes, total_bytes
from planner.timeline import SPAN_KINDS, busy_seconds, kind_of_action
from profiles.pages.html import Table
from profiles.units import GB, format_bytes, format_percent, format_seconds, three_digits


def points_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The numbers of the scatter."""
    return Table(
        caption="Time and memory of all plans; the front are those that no other beats in both",
        header=("plan", "rank", "step", "band of 90 %", "memory", "front", "why"),
        rows=tuple(
            (
                row["id"],
                str(row["rank"]),
                format_seconds(row["step_seconds"]),
                f"{format_seconds(row['low_seconds'])} to {format_seconds(row['high_seconds'])}",
                format_bytes(row["peak_bytes"]),
                "yes" if row["on_front"] else "",
                row["why"],
            )
            for row in rows
        ),
    )


def choices_table(rows: Sequence[dict[str, Any]]) -> Table:
    """What every plan chose, where plans differ."""
    names = [name for name in FILTERS if len({row[name] for row in rows}) > 1]
    return Table(
        caption="Choices of all plans",
        header=("plan", "rank", *(FILTERS[name] for name in names), "memory", "step"),
        rows=tuple(
            (
                row["id"],
                str(row["rank"]),
                *(str(row[name]) for name in names),
                format_bytes(row["peak_bytes"]),
                format_seconds(row["step_seconds"]),
            )
            for row in rows
        ),
    )


def parts_table(plans: Sequence[Candidate]) -> Table:
    """Seconds by part of some plans."""
    names = [name for name in PART_STYLES if any(own.prediction.seconds.get(name) for own in plans)]
    return Table(
        caption="Predicted seconds of a step by part, and their sum",
        header=("plan", *(PART_STYLES[name].name for name in names), "step"),
        rows=tuple(
            (
                own.plan.id,
                *(format_seconds(own.prediction.seconds.get(name, 0.0)) for name in names),
                format_seconds(own.prediction.step_seconds),
            )
            for own in plans
        ),
    )


def memory_table(held: Sequence[HeldBytes]) -> Table:
    """Bytes of the fullest rank by kind and layer."""
    whole = total_bytes(held)
    rows = [
        (one.kind, one.layers or "not told apart", format_bytes(one.num_bytes), format_percent(one.num_bytes / whole))
        for one in held
    ]
    return Table(
        caption="Bytes of the fullest rank by kind, and by the layers that hold them; they add up to the peak",
        header=("kind", "layers", "bytes", "of the peak"),
        rows=(*rows, ("peak", "", format_bytes(whole), format_percent(1.0))),
    )


def changes_table(changes: Sequence[Change]) -> Table:
    """What the step would be under other circumstances."""
    return Table(
        caption="The best plan's step if an unknown were off, and what would be best then",
        header=("what", "step", "change", "best plan then", "gain by changing"),
        rows=tuple(
            (
                change.what,
                format_seconds(change.step_seconds),
                format_percent(change.change_fraction, signed=True),
                "the same" if change.is_same else f"{change.winner}, {format_seconds(change.winner_seconds)}",
                "" if change.is_same else format_percent(change.gain),
            )
            for change in changes
        ),
    )


def refusals_table(counts: Mapping[str, int]) -> Table:
    """Rejected plans by reason."""
    rows = sorted(counts.items(), key=lambda pair: -pair[1])
    return Table(
        caption="Rejected plans",
        header=("reason", "plans"),
        rows=tuple((reason, f"{count:,}") for reason, count in rows),
    )


def timeline_table(spans: Sequence[Span]) -> Table:
    """Busy seconds of each pipeline rank by kind of action, of what is drawn."""
    return Table(
        caption="Busy time of each pipeline rank in what is drawn, by kind",
        header=("pipeline rank", *SPAN_KINDS),
        rows=tuple(
            (f"rank {rank}", *(_busy(spans, rank, kind) for kind in SPAN_KINDS))
            for rank in sorted({span.stage for span in spans})
        ),
    )


def _busy(spans: Sequence[Span], rank: int, kind: str) -> str:
    own = [span for span in spans if span.stage == rank and kind_of_action(span.action) == kind]
    return format_seconds(busy_seconds((span.start_seconds, span.stop_seconds) for span in own))


def links_table(drawing: Drawing) -> Table:
    """What joins the ranks of every axis."""
    return Table(
        caption="The group of rank 0 along every axis; rates are per device and direction",
        header=("axis", "ranks", "fast domains", "slowest link", "first ranks"),
        rows=tuple(
            (
                own.axis,
                str(own.degree),
                str(own.num_domains),
                f"{three_digits(own.bytes_per_second / GB)} GB/s",
                ", ".join(map(str, own.ranks[:4])) + (", ..." if own.degree > 4 else ""),
            )
            for own in drawing.axes
        ),
    )


def grounds_table(grounds: Sequence[Ground]) -> Table:
    """What predictions rest on."""
    return Table(
        caption="What the best plan's prediction rests on, and where each number comes from",
        header=("what", "value", "origin", "source"),
        rows=tuple((own.what, own.value, own.origin, own.source) for own in grounds),
    )


def resembling_table(found: Resembling) -> Table:
    """How many published runs are like the question."""
    return Table(
        caption=f"Of {found.num_runs:,} measured steps that others published, how many are like the best plan",
        header=("trait", "of this plan", "runs", "of all"),
        rows=tuple(
            (own.name, own.value, f"{own.num_runs:,}", format_percent(own.num_runs / max(found.num_runs, 1)))
            for own in found.traits
        ),
    )


def compression_table(choices: Sequence[CompressionChoice]) -> Table:
    """Compressed models beside the model as it is."""
    return Table(
        caption=f"On the front: {FRONT}; {JUDGED_BY}",
        header=("compression", *NUMBERS, "against others", QUALITY),
        rows=tuple(
            (choice.recipe.name, *numbers, marked(choice, "on the front", MISSES), quality)
            for choice in choices
            for *numbers, quality in (cells(choice),)
        ),
    )
