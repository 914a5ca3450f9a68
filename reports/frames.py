"""What the figures show, as pandas tables: one record per mark, in seconds and bytes.

The stacks of a table add up to the bar they split: what nobody could observe is a layer of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import pandas

from planner.pages.styles import MEASURED_PEAK, NOT_SPLIT
from planner.parts import PART_NAMES
from planner.prediction import KINDS
from planner.timeline import MEASURED, PREDICTED
from profiles.units import format_bytes, format_percent, format_seconds
from reports.comparison import Row, kind_of_plan


def labels_of(rows: Sequence[Row]) -> list[str]:
    """One distinct name per row: the plan's id, with file and rank where ids repeat."""
    ids = [row.plan_id for row in rows]
    with_source = [f"{row.plan_id} ({row.source})" for row in rows]
    if _distinct(ids):
        return ids
    if _distinct(with_source):
        return with_source
    return [f"{label} #{index}" for index, label in enumerate(with_source, start=1)]


def _distinct(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


def points(rows: Sequence[Row]) -> pandas.DataFrame:
    """One record per plan: predicted and measured seconds with their bands, and the text shown on hover."""
    records = [
        {
            "label": label,
            "kind": kind_of_plan(row.run.plan),
            "rank": row.run.rank,
            "is_judged": row.is_judged,
            "predicted_seconds": row.predicted_seconds,
            "low_seconds": row.run.prediction.low_seconds,
            "high_seconds": row.run.prediction.high_seconds,
            "measured_seconds": row.measured_seconds,
            "lower_seconds": row.measured.lower_seconds,
            "upper_seconds": row.measured.upper_seconds,
            "details": _details(row),
        }
        for label, row in zip(labels_of(rows), rows, strict=True)
    ]
    return pandas.DataFrame(records)


def _details(row: Row) -> tuple[str, ...]:
    predicted, measured = format_seconds(row.predicted_seconds), format_seconds(row.measured_seconds)
    numbers = f"predicted {predicted}, measured {measured}, error {format_percent(row.error_fraction, signed=True)}"
    fields = asdict(row.run.plan).items()
    return (numbers, *(f"{name} = {', '.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in fields))


def parts(rows: Sequence[Row]) -> pandas.DataFrame:
    """Seconds by plan, side and part; the parts of a side add up to its step time.

    Where observed parts exceed the median step (medians need not add up) nothing is left over.
    """
    records = []
    for label, row in zip(labels_of(rows), rows, strict=True):
        for side, total, seconds in (
            (PREDICTED, row.predicted_seconds, [row.part_seconds(part)[0] for part in PART_NAMES]),
            (MEASURED, row.measured_seconds, [row.part_seconds(part)[1] or 0.0 for part in PART_NAMES]),
        ):
            records += _stack(label, side, PART_NAMES, seconds, total)
    return pandas.DataFrame(records)


def memory(rows: Sequence[Row]) -> pandas.DataFrame:
    """Bytes of the fullest rank by plan, side and kind; a measured peak is one layer, absent where unobserved."""
    records = []
    for label, row in zip(labels_of(rows), rows, strict=True):
        kinds = [row.run.prediction.bytes_per_rank.get(kind, 0.0) for kind in KINDS]
        records += _stack(label, PREDICTED, KINDS, kinds, row.predicted_peak_bytes)
        records += _stack(label, MEASURED, (MEASURED_PEAK,), [row.measured_peak_bytes or 0.0], 0.0)
    return pandas.DataFrame(records)


def _stack(
    label: str, side: str, layers: Sequence[str], values: Sequence[float], total: float
) -> list[dict[str, str | float]]:
    rest = max(0.0, total - sum(values))
    # A rest of less than a thousandth is rounding, not something unobserved.
    rest = rest if rest > 1e-3 * total else 0.0
    pairs = [*zip(layers, values, strict=True), (NOT_SPLIT, rest)]
    return [{"label": label, "side": side, "layer": layer, "value": value} for layer, value in pairs]


def assumptions(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """The assumptions of the predictions and how many plans rest on each, commonest first."""
    return Counter(text for row in rows for text in row.run.prediction.assumptions).most_common()


def byte_text(num_bytes: float | None) -> str:
    """Bytes as text, or that they could not be observed."""
    return "not observable" if num_bytes is None else format_bytes(num_bytes)
