"""The tables of the page, as text: each figure has one, so that nothing can be seen only in a drawing."""

from __future__ import annotations

from collections.abc import Sequence

from planner.pages.styles import KIND_STYLES, PART_STYLES
from planner.parts import PART_NAMES
from planner.prediction import KINDS, Span
from planner.timeline import SPAN_KINDS, bubble_fraction, busy_seconds, kind_of_action
from profiles.pages.html import Table
from profiles.units import format_bytes, format_percent, format_seconds
from reports.calibration import Calibration
from reports.comparison import Row
from reports.frames import byte_text, labels_of

UNOBSERVED = "not observable"


def span_text(start_seconds: float, stop_seconds: float) -> str:
    """A range of seconds as text."""
    return f"{format_seconds(start_seconds)} to {format_seconds(stop_seconds)}"


def points_table(rows: Sequence[Row]) -> Table:
    """The numbers of the scatter."""
    return Table(
        caption="Step times and their bands",
        header=("plan", "predicted", "predicted band", "measured", "middle half of the steps", "error"),
        rows=tuple(
            (
                label,
                format_seconds(row.predicted_seconds),
                span_text(row.run.prediction.low_seconds, row.run.prediction.high_seconds),
                format_seconds(row.measured_seconds),
                span_text(row.measured.lower_seconds, row.measured.upper_seconds),
                format_percent(row.error_fraction, signed=True),
            )
            for label, row in zip(labels_of(rows), rows, strict=True)
        ),
    )


def parts_table(rows: Sequence[Row]) -> Table:
    """Predicted and measured seconds of each part that occurs, and predicted minus measured in brackets."""
    present = [part for part in PART_NAMES if any(any(row.part_seconds(part)) for row in rows)]
    return Table(
        caption="Predicted / measured seconds by part; in brackets predicted minus measured. Recomputation that "
        "was not observed separately is compared within compute.",
        header=("plan", *(PART_STYLES[part].name for part in present)),
        rows=tuple(
            (label, *(_part_cell(row, part) for part in present))
            for label, row in zip(labels_of(rows), rows, strict=True)
        ),
    )


def _part_cell(row: Row, part: str) -> str:
    predicted, measured = row.part_seconds(part)
    difference = row.part_difference_seconds(part)
    if measured is None or difference is None:
        return f"{format_seconds(predicted)} / {UNOBSERVED}"
    sign = "+" if difference > 0 else ""
    return f"{format_seconds(predicted)} / {format_seconds(measured)} ({sign}{format_seconds(difference)})"


def memory_table(rows: Sequence[Row]) -> Table:
    """Predicted bytes by kind, the predicted and the measured peak, and the error."""
    return Table(
        caption="Memory of the fullest rank: predicted by kind, and peaks",
        header=("plan", *(KIND_STYLES[kind].name for kind in KINDS), "predicted peak", "measured peak", "error"),
        rows=tuple(
            (
                label,
                *(format_bytes(row.run.prediction.bytes_per_rank.get(kind, 0.0)) for kind in KINDS),
                format_bytes(row.predicted_peak_bytes),
                byte_text(row.measured_peak_bytes),
                UNOBSERVED if (error := row.memory_error_fraction) is None else format_percent(error, signed=True),
            )
            for label, row in zip(labels_of(rows), rows, strict=True)
        ),
    )


def timeline_table(row: Row) -> Table:
    """Busy seconds of each stage by kind of action, and the share of the pipeline that stands idle."""
    sides = (("predicted", row.run.prediction.spans), ("measured", row.run.measurement.spans))
    lines = []
    for side, spans in sides:
        for stage in sorted({span.stage for span in spans}):
            lines.append((f"{side}, stage {stage}", *(_busy(spans, stage, kind) for kind in SPAN_KINDS)))
        bubble = bubble_fraction(spans, row.run.plan)
        lines.append((f"{side}, bubble", "" if bubble is None else format_percent(bubble), "", "", "", ""))
    return Table(
        caption="Busy time of each stage, and the share of all ranks' time spent idle (bubble)",
        header=("side and stage", *SPAN_KINDS),
        rows=tuple(lines),
    )


def _busy(spans: Sequence[Span], stage: int, kind: str) -> str:
    return format_seconds(
        busy_seconds(
            (span.start_seconds, span.stop_seconds)
            for span in spans
            if span.stage == stage and kind_of_action(span.action) == kind
        )
    )


def calibration_table(calibration: Calibration) -> Table:
    """The correction of each part."""
    return Table(
        caption=f"Corrections learned on {calibration.machine_name}",
        header=("part", "multiply by", "runs", "spread of the runs", "bounded"),
        rows=tuple(
            (
                PART_STYLES[correction.part].name,
                f"{correction.factor:.3f}",
                str(correction.num_runs),
                format_percent(correction.spread_fraction),
                "yes" if correction.is_clipped else "no",
            )
            for correction in calibration.parts
        ),
    )


def calibration_sentence(calibration: Calibration) -> str:
    """What the corrections would have done to runs that were left out of the fit."""
    name, after_step = calibration.machine_name, calibration.error_fraction_after_step_factor
    after_parts = calibration.error_fraction_after_part_factors
    if after_step is None or after_parts is None:
        return f"One run on {name} is too few to tell whether a correction would help others."
    before = format_percent(calibration.error_fraction_before)
    helps = "would help" if calibration.is_helpful else "would not help: the errors have no common cause"
    return (
        f"On {name}, {calibration.num_runs} runs had a median error of {before}. With each run corrected by what the "
        f"others teach it would be {format_percent(after_step)} with one factor for the whole step "
        f"({calibration.step_factor:.3f} over all runs) and {format_percent(after_parts)} with a factor for each part. "
        f"A correction {helps}."
    )
