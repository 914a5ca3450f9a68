"""What a table of published runs says of predictions: errors by family and over all, every family weighing alike."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from profiles.units import format_percent
from reports.published.rows import PublishedRun
from reports.summary import Finding, Tone

# Marks for the tone only.
GOOD_ERROR, FAIR_ERROR, GOOD_BIAS, GOOD_COVERAGE = 0.10, 0.20, 0.05, (0.8, 0.99)
VALUE = re.compile(r"'[^']*'|\d[\d.,]*(?:e[+-]?\d+)?")
SIGNIFICANT_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Errors of some runs, None where none is judged.

    Errors are predicted / measured - 1, median and 90th percentile without sign; `bias_fraction` is the mean of their
    logarithms, back as a fraction; `inside_band_fraction` the share of measured values in the band.
    """

    num_rows: int
    num_predicted: int
    num_refused: int
    num_compared: int
    median_error_fraction: float | None
    p90_error_fraction: float | None
    bias_fraction: float | None
    inside_band_fraction: float | None
    num_memory_compared: int
    median_memory_error_fraction: float | None
    p90_memory_error_fraction: float | None
    memory_bias_fraction: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSummary:
    """Errors of all runs, families weighing alike, and of each family; counts of what stands beside them.

    `num_unfit` runs have a measurement of quality C, which is left out. Of the `num_out_of_memory` runs that ran out
    of memory, `num_out_of_memory_predicted` were predicted not to fit; `num_false_alarms` ran though predicted not to.
    """

    total: Errors
    families: dict[str, Errors]
    num_unfit: int
    num_out_of_memory: int
    num_out_of_memory_predicted: int
    num_false_alarms: int
    refusals: tuple[tuple[str, int], ...]
    assumptions: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the errors over all, the counts, and the families."""
        return {
            **asdict(self.total),
            "num_unfit": self.num_unfit,
            "num_out_of_memory": self.num_out_of_memory,
            "num_out_of_memory_predicted": self.num_out_of_memory_predicted,
            "num_false_alarms": self.num_false_alarms,
            "families": [{"family": name, **asdict(errors)} for name, errors in self.families.items()],
            "refusals": [{"reason": reason, "count": count} for reason, count in self.refusals],
            "assumptions": [{"column": column, "count": count} for column, count in self.assumptions],
        }


def weighted_quantile(values: Sequence[float], weights: Sequence[float], share: float) -> float:
    """The value below which `share` of the weight lies, between the middles of the weights of two values."""
    order = np.argsort(values, kind="stable")
    ordered, held = np.asarray(values, dtype=float)[order], np.asarray(weights, dtype=float)[order]
    middles = (np.cumsum(held) - held / 2) / held.sum()
    return float(np.interp(share, middles, ordered))


def family_weights(families: Sequence[str]) -> list[float]:
    """A weight per run, so that every family weighs the same and all together 1."""
    counts = Counter(families)
    return [1 / counts[family] / len(counts) for family in families]


def summarise(runs: Sequence[PublishedRun]) -> PublishedSummary:
    """The summary of a table."""
    families = dict.fromkeys(run.family for run in runs)
    ran_out = [run for run in runs if run.is_out_of_memory]
    refusals = Counter(run.forecast.refused for run in runs if run.forecast.refused is not None)
    return PublishedSummary(
        total=errors_of(runs),
        families={family: errors_of([run for run in runs if run.family == family]) for family in families},
        num_unfit=sum(not run.is_fit and run.error_fraction is not None for run in runs),
        num_out_of_memory=len(ran_out),
        num_out_of_memory_predicted=sum(run.fits is False for run in ran_out),
        num_false_alarms=sum(
            run.fits is False and run.measured_seconds is not None and not run.is_out_of_memory for run in runs
        ),
        refusals=_by_reason(refusals),
        assumptions=tuple(
            Counter(
                text.split(":")[0]
                for run in runs
                if run.forecast.refused is None
                for text in run.forecast.assumptions
                if " computed " not in text
            ).most_common()
        ),
    )


def _by_reason(refusals: Counter[str]) -> tuple[tuple[str, int], ...]:
    """Refusals that differ in their values only, under the words of the most frequent one."""
    groups: dict[str, list[tuple[str, int]]] = {}
    for text, count in refusals.most_common():
        groups.setdefault(VALUE.sub("…", text), []).append((text, count))
    merged = [(texts[0][0], sum(count for _, count in texts)) for texts in groups.values()]
    return tuple(sorted(merged, key=lambda item: -item[1]))


def errors_of(runs: Sequence[PublishedRun]) -> Errors:
    """The errors of some runs, families weighing alike."""
    judged = [run for run in runs if run.is_judged]
    errors = [float(run.error_fraction or 0.0) for run in judged]
    weights = family_weights([run.family for run in judged])
    median, p90, bias = _spread(errors, weights)
    with_memory = [run for run in runs if run.is_memory_judged]
    memory = [float(run.memory_error_fraction or 0.0) for run in with_memory]
    memory_median, memory_p90, memory_bias = _spread(memory, family_weights([run.family for run in with_memory]))
    return Errors(
        num_rows=len(runs),
        num_predicted=sum(run.is_predicted for run in runs),
        num_refused=sum(run.forecast.refused is not None for run in runs),
        num_compared=len(judged),
        median_error_fraction=median,
        p90_error_fraction=p90,
        bias_fraction=bias,
        inside_band_fraction=min(1.0, float(np.dot(weights, [run.is_inside_band for run in judged])))
        if judged
        else None,
        num_memory_compared=len(memory),
        median_memory_error_fraction=memory_median,
        p90_memory_error_fraction=memory_p90,
        memory_bias_fraction=memory_bias,
    )


def _spread(errors: Sequence[float], weights: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Median and 90th percentile without sign, and bias."""
    if not errors:
        return None, None, None
    sizes = [abs(error) for error in errors]
    # A prediction of nothing would be infinitely low.
    logarithms = np.log(np.maximum(1 + np.asarray(errors), 1e-9))
    bias = float(np.expm1(np.dot(weights, logarithms)))
    return weighted_quantile(sizes, weights, 0.5), weighted_quantile(sizes, weights, 0.9), bias


def verdict(summary: PublishedSummary) -> tuple[Finding, ...]:
    """What the table showed, most important first."""
    total = summary.total
    findings = [_accuracy(summary), *_band(total), *_memory(summary)]
    if total.num_refused:
        findings.append(Finding(tone="fair", text=f"Refused: {total.num_refused} of {total.num_rows} rows."))
    missing = total.num_rows - total.num_refused - total.num_predicted
    if missing:
        findings.append(
            Finding(tone="bad", text=f"Read, but without a prediction: {missing} of {total.num_rows} rows.")
        )
    if summary.num_unfit:
        text = f"Predicted, but not judged because their measurement has quality C: {summary.num_unfit}."
        findings.append(Finding(tone="plain", text=text))
    return tuple(findings)


def _accuracy(summary: PublishedSummary) -> Finding:
    total = summary.total
    median, p90 = total.median_error_fraction, total.p90_error_fraction
    if median is None or p90 is None:
        text = f"{total.num_predicted} of {total.num_rows} runs are predicted; none has a step time to compare with."
        return Finding(tone="plain", text=text)
    count = sum(errors.num_compared > 0 for errors in summary.families.values())
    alike = f" of {count} families, which have equal weight" if count > 1 else ""
    tone: Tone = "good" if median <= GOOD_ERROR else "fair" if median <= FAIR_ERROR else "bad"
    return Finding(
        tone=tone,
        text=f"Step times were predicted with a median error of {format_percent(median)}, nine in ten within "
        f"{format_percent(p90)}; runs compared: {total.num_compared}{alike}.",
    )


def _band(total: Errors) -> list[Finding]:
    inside, bias = total.inside_band_fraction, total.bias_fraction
    if inside is None or bias is None:
        return []
    direction = "slow" if bias > 0 else "fast"
    low, high = GOOD_COVERAGE
    return [
        Finding(
            tone="good" if abs(bias) <= GOOD_BIAS else "fair",
            text=f"On average predicted {format_percent(abs(bias))} too {direction}.",
        ),
        Finding(
            tone="good" if low <= inside <= high or total.num_compared < SIGNIFICANT_RUNS else "fair",
            text=f"{format_percent(inside)} of the measured step times lie in their band, which is meant to hold 90 %.",
        ),
    ]


def _memory(summary: PublishedSummary) -> list[Finding]:
    total, findings = summary.total, []
    median, p90 = total.median_memory_error_fraction, total.p90_memory_error_fraction
    if median is not None and p90 is not None:
        findings.append(
            Finding(
                tone="good" if median <= GOOD_ERROR else "fair" if median <= FAIR_ERROR else "bad",
                text=f"Peak memory was predicted with a median error of {format_percent(median)}, nine in ten within "
                f"{format_percent(p90)}; runs compared: {total.num_memory_compared}.",
            )
        )
    if summary.num_out_of_memory:
        found, count = summary.num_out_of_memory_predicted, summary.num_out_of_memory
        text = f"Predicted not to fit, of those that ran out of memory: {found} of {count}."
        findings.append(Finding(tone="good" if found == count else "fair", text=text))
    if summary.num_false_alarms:
        text = f"Predicted not to fit, though they ran: {summary.num_false_alarms}."
        findings.append(Finding(tone="fair", text=text))
    return findings


def known(value: float | None) -> float | None:
    """A value fit for JSON: None where it is unknown or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def row_to_json(run: PublishedRun) -> dict[str, Any]:
    """One row for `--json`."""
    made = run.forecast
    return {
        "row_id": run.row_id,
        "family": run.family,
        "predicted_step_seconds": known(made.step_seconds),
        "low_seconds": known(made.low_seconds),
        "high_seconds": known(made.high_seconds),
        "measured_step_seconds": run.measured_seconds,
        "error_fraction": run.error_fraction,
        "is_judged": run.is_judged,
        "predicted_allocated_bytes": known(made.allocated_bytes),
        "predicted_reserved_bytes": known(made.reserved_bytes),
        "predicted_device_bytes": known(made.device_bytes),
        "low_bytes": known(made.low_bytes),
        "high_bytes": known(made.high_bytes),
        "measured_bytes": run.measured_bytes,
        "memory_counter": run.counter if run.measured_bytes is not None else None,
        "memory_error_fraction": run.memory_error_fraction,
        "fits": run.fits,
        "seconds": {name: known(value) for name, value in made.seconds.items()},
        "bytes": {name: known(value) for name, value in made.bytes.items()},
        "assumptions": list(made.assumptions),
        "refused": made.refused,
    }


def in_sample_notes(row_ids: Sequence[str]) -> list[str]:
    """A note where rows are among those that the factors were learned from."""
    from planner.published.calibrate import learned_from

    num_learned = len(learned_from().intersection(row_ids))
    if not num_learned:
        return []
    share = f"{num_learned} of {len(row_ids)} rows"
    return [f"{share} are among the runs that the factors were learned from: their errors are in sample"]
