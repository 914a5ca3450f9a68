"""What all rows say together: how large the errors are, how well the order was found, and the verdict in plain words.

Only judged runs count. Rank correlation, regret and speed-up belong to one case; over several cases their medians
are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from executor.run.beside import ratios
from profiles.units import format_percent, format_seconds
from reports.cases import Case, Standing
from reports.comparison import Row

Tone = Literal["good", "fair", "bad", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sentence of the verdict and how it should sound."""

    tone: Tone
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Errors over the judged rows; fields are None where nothing was judged or there is nothing to compare with.

    `bias_fraction` is the mean signed error; `inside_band_fraction` the share of measured medians in the predicted
    band; `median_spread_fraction` the usual interquartile range / median of one plan's steps. Memory and losses do not
    depend on the number of cores, so they count for all rows.
    """

    num_runs: int
    num_judged: int
    median_error_fraction: float | None
    p90_error_fraction: float | None
    bias_fraction: float | None
    inside_band_fraction: float | None
    median_spread_fraction: float | None
    median_repeat_spread_fraction: float | None
    median_memory_error_fraction: float | None
    rank_correlation: float | None
    top1_regret_fraction: float | None
    measured_speedup: float | None
    predicted_speedup: float | None
    num_failed_loss_checks: int


def summarise(cases: Sequence[Case]) -> Summary:
    """The summary of all judged cases."""
    rows = [row for case in cases for row in case.rows]
    judged_cases = [case for case in cases if case.is_judged]
    judged = [row for case in judged_cases for row in case.judged_rows]
    errors = np.array([row.error_fraction for row in judged])
    return Summary(
        num_runs=len(rows),
        num_judged=len(judged),
        median_error_fraction=median(abs(errors)),
        p90_error_fraction=float(np.percentile(abs(errors), 90)) if judged else None,
        bias_fraction=float(np.mean(errors)) if judged else None,
        inside_band_fraction=float(np.mean([row.is_inside_band for row in judged])) if judged else None,
        median_spread_fraction=median(row.measured.spread_fraction for row in judged),
        median_repeat_spread_fraction=median(s.repeat_spread_fraction for c in judged_cases for s in c.standings),
        median_memory_error_fraction=median(
            abs(row.memory_error_fraction) for row in rows if row.memory_error_fraction is not None
        ),
        rank_correlation=median(case.rank_correlation for case in judged_cases),
        top1_regret_fraction=median(case.top1_regret_fraction for case in judged_cases),
        measured_speedup=median(case.measured_speedup for case in judged_cases),
        predicted_speedup=median(case.predicted_speedup for case in judged_cases),
        num_failed_loss_checks=sum(row.run.measurement.loss_check.status == "failed" for row in rows),
    )


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that exist, None where none does."""
    present = [value for value in values if value is not None]
    return float(np.median(present)) if present else None


def case_to_json(case: Case) -> dict[str, Any]:
    """The outcome of one case; timings of a case that is not judged are null."""
    judged = case.is_judged
    return {
        "name": case.name,
        "is_judged": judged,
        "chosen": case.chosen.plan.id,
        "fastest": case.fastest.plan.id if judged else None,
        "baseline": case.baseline.plan.id if case.baseline else None,
        "rank_correlation": case.rank_correlation if judged else None,
        "top1_regret_fraction": case.top1_regret_fraction if judged else None,
        "is_choice_within_noise": case.is_choice_within_noise if judged else None,
        "measured_speedup": case.measured_speedup if judged else None,
        "predicted_speedup": case.predicted_speedup,
        "repeat_spread_fractions": {
            standing.plan.id: standing.repeat_spread_fraction
            for standing in case.standings
            if standing.repeat_spread_fraction is not None
        },
        "verdict": [asdict(finding) for finding in verdict(case)],
    }


def verdict(case: Case) -> tuple[Finding, ...]:
    """What a case showed, most important first."""
    timing = [_choice(case), *_gain(case), _accuracy(case.judged_rows)] if case.is_judged else []
    return (*timing, *_engines(case.rows), *_not_judged(case), *_losses(case.rows))


def _engines(rows: Sequence[Row]) -> list[Finding]:
    """Other engines beside this program, of plans that both ran in turns."""
    of_sources = [[row.run for row in rows if row.source == source] for source in dict.fromkeys(r.source for r in rows)]
    return [Finding(tone="plain", text=f"{ratio}.") for runs in of_sources for ratio in ratios(runs)]


def _not_judged(case: Case) -> list[Finding]:
    left = [row.why_not_judged for row in case.rows if not row.is_judged]
    if not left:
        return []
    share = f" {len(left)} of {len(case.rows)} runs," if case.is_judged else ""
    why = " and ".join(dict.fromkeys(left))
    return [Finding(tone="fair", text=f"Not judged:{share} {why}, so timings say little about the plans.")]


def _choice(case: Case) -> Finding:
    chosen, fastest = case.chosen, case.fastest
    count = len(case.standings)
    ran = f"{chosen.plan.id} ran at {format_seconds(chosen.measured.median_seconds)} per step"
    if count == 1:
        return Finding(tone="plain", text=f"One plan ran: {ran}.")
    if chosen is fastest:
        return Finding(tone="good", text=f"The planner picked the fastest of {count} plans: {ran}, as ranked.")
    regret = format_percent(case.top1_regret_fraction)
    other = f"{fastest.plan.id} at {format_seconds(fastest.measured.median_seconds)}"
    if case.is_choice_within_noise:
        return Finding(
            tone="good",
            text=f"The planner picked a plan within noise of the fastest of {count}: {ran}, {other} ({regret} apart).",
        )
    tone: Tone = "fair" if case.top1_regret_fraction <= 0.05 else "bad"
    return Finding(
        tone=tone, text=f"The planner's choice is {regret} slower than the fastest of {count}: {ran}, {other}."
    )


def _gain(case: Case) -> list[Finding]:
    baseline, measured, predicted = case.baseline, case.measured_speedup, case.predicted_speedup
    if baseline is None or measured is None or predicted is None:
        missing = "was not judged" if any(row.run.is_baseline for row in case.rows) else "did not run"
        return [Finding(tone="plain", text=f"Plain data parallel {missing}, so the gain over it is unknown.")]
    if baseline is case.chosen:
        return [Finding(tone="plain", text="The planner's choice is plain data parallel itself.")]
    tone: Tone = "bad" if _is_slower(case.chosen, baseline) else "good" if measured > 1 else "fair"
    return [
        Finding(
            tone=tone,
            text=f"Against plain data parallel ({format_seconds(baseline.measured.median_seconds)}) the choice is "
            f"{measured:.2f} times as fast; predicted {predicted:.2f} times.",
        )
    ]


def _is_slower(one: Standing, other: Standing) -> bool:
    lower: float = one.measured.lower_seconds
    return lower > other.measured.upper_seconds


def _accuracy(rows: Sequence[Row]) -> Finding:
    errors = [abs(row.error_fraction) for row in rows]
    middle = float(np.median(errors))
    inside = sum(row.is_inside_band for row in rows)
    spread = median(row.measured.spread_fraction for row in rows) or 0.0
    # 15 % and 30 % are marks for the tone only; --tolerance sets what a run must reach.
    tone: Tone = "good" if middle <= 0.15 else "fair" if middle <= 0.30 else "bad"
    return Finding(
        tone=tone,
        text=f"Step times were predicted with a median error of {format_percent(middle)} (worst "
        f"{format_percent(max(errors))}); {inside} of {len(rows)} measured times lie in the predicted band. "
        f"The steps of one plan spread by {format_percent(spread)}.",
    )


def _losses(rows: Sequence[Row]) -> list[Finding]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.run.measurement.loss_check.status, []).append(row)
    findings = [
        Finding(
            tone="bad",
            text=f"{row.plan_id} does not train as one device would: {row.run.measurement.loss_check.reason}",
        )
        for row in groups.get("failed", [])
    ]
    passed, exempt, skipped = (len(groups.get(status, [])) for status in ("passed", "exempt", "skipped"))
    words = [f"{passed} of {len(rows)} plans train as one device would"]
    words += [f"{exempt} exempt (lossy codec)"] if exempt else []
    words += [f"{skipped} not checked"] if skipped else []
    tone: Tone = "good" if passed and not skipped and not groups.get("failed") else "plain"
    return [*findings, Finding(tone=tone, text="; ".join(words) + ".")]
