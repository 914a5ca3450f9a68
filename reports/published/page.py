"""The page about a table of published runs: one file that works offline, drawn like the page about one's own runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from planner.pages.styles import PART_STYLES
from profiles.pages.html import Table, environment, picture, plotly_script
from profiles.units import format_bytes, format_percent, format_seconds
from reports.published import figures
from reports.published.rows import PublishedRun
from reports.published.summary import Errors, PublishedSummary, verdict

MAX_ROWS, MAX_TYPICAL, NUM_WORST = 300, 12, 4
NO_TABLE = Table(caption="", header=(), rows=())
FAMILY_HEADER = (
    "family", "rows", "refused", "judged", "median error", "90th percentile", "bias", "in the band",
    "memory judged", "memory error", "memory bias",
)  # fmt: skip


def render(runs: Sequence[PublishedRun], summary: PublishedSummary, title: str, notes: Sequence[str] = ()) -> str:
    """The whole page as HTML text; `notes` say how the table was read."""
    pages = environment("reports")
    pages.filters |= {
        "seconds": _or_dash(format_seconds),
        "bytes": _or_dash(format_bytes),
        "percent": _or_dash(lambda value: format_percent(value, signed=True)),
    }
    families = list(summary.families)
    shown = _shown(runs)
    chosen = chosen_runs(runs)
    has_times = any(run.error_fraction is not None for run in runs)
    has_errors = any(run.is_judged for run in runs)
    has_memory = any(run.memory_error_fraction is not None for run in runs)
    page = pages.get_template("published.html").render(
        title=title,
        notes=notes,
        verdict=verdict(summary),
        tiles=tiles(summary),
        summary=summary,
        families=families_table(summary),
        times=picture("times", figures.times(runs, families), NO_TABLE) if has_times else None,
        errors=picture("errors", figures.errors(runs, families), NO_TABLE) if has_errors else None,
        parts=picture("parts", figures.parts(chosen), parts_table(chosen)) if chosen else None,
        memory=picture("memory", figures.memory(runs, families), NO_TABLE) if has_memory else None,
        runs=shown,
        num_hidden=len(runs) - len(shown),
        plotly=plotly_script(),
    )
    return page.lstrip()


def _or_dash(form: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "-" if value is None or not math.isfinite(value) else form(value)


def _shown(runs: Sequence[PublishedRun]) -> list[PublishedRun]:
    """All rows in their order, or of many those that tell most."""
    if len(runs) <= MAX_ROWS:
        return list(runs)
    return sorted(runs, key=lambda run: (run.forecast.refused is None, -abs(run.error_fraction or 0.0)))[:MAX_ROWS]


def chosen_runs(runs: Sequence[PublishedRun]) -> list[PublishedRun]:
    """The run of typical error of each family, and the runs farthest off; without measurements the first of each."""
    with_parts = [run for run in runs if run.is_predicted and run.forecast.seconds]
    chosen: list[PublishedRun] = []
    for family in list(dict.fromkeys(run.family for run in with_parts))[:MAX_TYPICAL]:
        own = [run for run in with_parts if run.family == family]
        judged = sorted((run for run in own if run.is_judged), key=lambda run: abs(run.error_fraction or 0.0))
        chosen.append(judged[len(judged) // 2] if judged else own[0])
    worst = sorted((run for run in with_parts if run.is_judged), key=lambda run: -abs(run.error_fraction or 0.0))
    return chosen + [run for run in worst[:NUM_WORST] if run not in chosen]


def tiles(summary: PublishedSummary) -> list[tuple[str, str, str]]:
    """The key numbers: name, value, and what it means."""
    total = summary.total
    return [
        ("runs", str(total.num_rows), f"{total.num_predicted} predicted, {total.num_refused} refused"),
        ("judged", str(total.num_compared), "with a comparable step time"),
        ("median error", _percent(total.median_error_fraction), "of step time, absolute"),
        ("90th percentile", _percent(total.p90_error_fraction), "of the error"),
        ("bias", _percent(total.bias_fraction, signed=True), "above 0: predicted too slow"),
        ("in the band", _percent(total.inside_band_fraction), "meant to be 90 %"),
        ("memory error", _percent(total.median_memory_error_fraction), f"median of {total.num_memory_compared} peaks"),
    ]


def _percent(fraction: float | None, signed: bool = False) -> str:
    return "none" if fraction is None else format_percent(fraction, signed=signed)


def families_table(summary: PublishedSummary) -> Table:
    """Errors by family, and of all."""
    rows = [_family_row(name, errors) for name, errors in summary.families.items()]
    if len(rows) > 1:
        rows.append(_family_row("all, families alike", summary.total))
    return Table(
        caption="Error is predicted / measured - 1, median and 90th percentile absolute; bias is the mean of the "
        "logarithms. Over all, every family has the same weight.",
        header=FAMILY_HEADER,
        rows=tuple(rows),
    )


def _family_row(name: str, errors: Errors) -> tuple[str, ...]:
    return (
        name,
        str(errors.num_rows),
        str(errors.num_refused),
        str(errors.num_compared),
        _dash(errors.median_error_fraction),
        _dash(errors.p90_error_fraction),
        _dash(errors.bias_fraction, signed=True),
        _dash(errors.inside_band_fraction),
        str(errors.num_memory_compared),
        _dash(errors.median_memory_error_fraction),
        _dash(errors.memory_bias_fraction, signed=True),
    )


def _dash(fraction: float | None, signed: bool = False) -> str:
    return "-" if fraction is None else format_percent(fraction, signed=signed)


def parts_table(runs: Sequence[PublishedRun]) -> Table:
    """Predicted seconds by part of some runs."""
    names = list(dict.fromkeys(name for run in runs for name in run.forecast.seconds))
    names = [name for name in names if any(run.forecast.seconds.get(name) for run in runs)]
    seconds = _or_dash(format_seconds)
    return Table(
        caption="Predicted seconds by part, their sum, and the measured step",
        header=("row", *(PART_STYLES[name].name if name in PART_STYLES else name for name in names),
                "predicted", "measured"),
        rows=tuple(
            (
                run.row_id,
                *(seconds(run.forecast.seconds.get(name, 0.0)) for name in names),
                seconds(run.forecast.step_seconds),
                seconds(run.measured_seconds),
            )
            for run in runs
        ),
    )  # fmt: skip
