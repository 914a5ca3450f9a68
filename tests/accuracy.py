"""What the shipped runs say, as one table of checks and goals: `make accuracy`.

Every check predicts from configurations alone. "Fitted on all" is in sample; "from the others" leaves a family out.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from planner.cost.error_bands import scale_for
from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.cost.layers import layer_pass
from planner.cost.memory.footprint import footprint
from planner.cost.software_time import rules_of
from planner.published.calibrate import RUNS, shipped_runs
from planner.published.learn import family_weights, leave_one_family_out, predict, total_seconds
from planner.published.reading import read_jobs

LAYER_TIMES = RUNS.parent / "layer_times.csv"
MEMORY = Path(__file__).parent / "golden" / "published_memory.csv"
# What each row of layer_times.csv changes of the published 22B job, in runs.csv's words.
VARIANTS = {
    "no recompute": {"recompute_class": "none", "sequence_parallel": "no"},
    "sequence parallel, no recompute": {"recompute_class": "none", "sequence_parallel": "yes"},
    "full recompute": {"recompute_class": "full", "sequence_parallel": "no"},
    "selective recompute": {"recompute_class": "selective", "sequence_parallel": "no"},
    "selective recompute + sequence parallel": {"recompute_class": "selective", "sequence_parallel": "yes"},
}


@dataclass(frozen=True)
class Check:
    """One line of the table: a share of 1 that was reached, and what it should be."""

    name: str
    reached: float
    low: float
    high: float

    @property
    def holds(self):
        return self.low <= self.reached <= self.high

    def __str__(self):
        goal = f"<= {self.high:.0%}" if self.low == 0 else f"{self.low:.0%} to {self.high:.0%}"
        return f"{self.name:64} {self.reached:7.1%}   goal {goal:12} {'holds' if self.holds else 'MISSED'}"


def weighted_quantile(values, weights, share):
    order = np.argsort(values)
    return values[order][np.searchsorted(np.cumsum(weights[order]), share * weights.sum())]


def shipped_rows(family=None):
    with RUNS.open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if family in (None, row["family"])]


def fitted(runs, made):
    """Predicted over measured minus 1, with the shipped factors."""
    return total_seconds(predict(made, load_learned())) / runs.step_seconds - 1


def left_out(runs, made):
    """Predicted over measured minus 1 from the other families, and half widths of bands that hold 90 %."""
    found = leave_one_family_out(runs, made)
    logarithms = np.log(found.step_seconds / runs.step_seconds)
    scale = scale_for(logarithms, found.spread, family_weights(runs.family))
    return found.step_seconds / runs.step_seconds - 1, np.exp(scale * found.spread) - 1


def covered_when_left_out(runs, errors, widths):
    """Share of runs, families alike, within bands whose scale was set without their family."""
    spread, logarithms = np.log1p(widths), np.log1p(errors)
    inside = np.zeros(len(errors), dtype=bool)
    for family in np.unique(runs.family):
        own = runs.family == family
        scale = scale_for(logarithms[~own], spread[~own], family_weights(runs.family[~own]))
        inside[own] = np.abs(logarithms[own]) <= scale * spread[own]
    return float(inside @ family_weights(runs.family))


def layer_time_errors():
    """Predicted over measured minus 1 of forward and backward of the published 22B layer, by variant."""
    with LAYER_TIMES.open(newline="") as stream:
        measured = list(csv.DictReader(stream))
    base = next(row for row in shipped_rows("korthikanti") if row["num_layers"] == "48")
    jobs = read_jobs([base | VARIANTS[row["variant"]] for row in measured]).jobs
    learned = load_learned()
    made = ingredients_of(jobs)
    rules = rules_of(jobs, learned)
    made = replace(made, rules=rules)
    seconds = sum(layer_pass(made, learned.factors, phase, "dense").total for phase in ("forward", "backward"))
    return seconds / np.array([float(row["combined_ms"]) * 1e-3 for row in measured]) - 1


def regrets(runs, errors):
    """By how much the run predicted fastest is slower than the fastest, of one-node runs alike but for layout."""
    chosen = runs.family == "vtrain_single"
    jobs, measured = runs.jobs.take(chosen), runs.step_seconds[chosen]
    predicted = (1 + errors[chosen]) * measured
    keys = np.stack([jobs.num_devices, jobs.model.hidden_size, jobs.model.num_layers, jobs.global_batch], axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    result = []
    for index in range(group.max() + 1):
        own = np.flatnonzero(group.reshape(-1) == index)
        if len(own) > 1:
            result.append(measured[own[predicted[own].argmin()]] / measured[own].min() - 1)
    return np.array(result)


def memory_errors(family):
    """Median absolute errors of a family's peak memory, allocated and reserved."""
    with MEMORY.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["family"] == family]
    jobs = read_jobs(rows).jobs
    held = footprint(jobs)
    allocated = held.allocated_bytes / 2**30 / np.array([float(row["peak_mem_gib"]) for row in rows]) - 1
    reserved = held.reserved_bytes / 2**30 / np.array([float(row["reserved_gib"]) for row in rows]) - 1
    return float(np.median(np.abs(allocated))), float(np.median(np.abs(reserved)))


def grades(runs):
    """Quality of each run's published time, in the order of `runs`."""
    rows = [row for row in shipped_rows() if row["quality"] in ("A", "B") and row["step_time_s"]]
    assert len(rows) == len(runs.jobs)
    return np.array([row["quality"] for row in rows])


def checks(runs, made, outside, widths):
    """All lines of the table."""
    weights = family_weights(runs.family)
    inside = fitted(runs, made)
    is_a = grades(runs) == "A"
    allocated, reserved = memory_errors("simumax_b200")

    def mean_of(family):
        return float(np.abs(inside[runs.family == family]).mean())

    both = np.isin(runs.family, ("korthikanti", "megatron_sc21"))
    left = "step time, each family from the others: "
    return [
        Check(left + "median", weighted_quantile(np.abs(outside), weights, 0.5), 0, 0.06),
        Check(left + "90th percentile", weighted_quantile(np.abs(outside), weights, 0.9), 0, 0.16),
        Check(left + "bias, either way", float(abs(np.exp(weights @ np.log1p(outside)) - 1)), 0, 0.02),
        Check("step time, fitted on all: median", weighted_quantile(np.abs(inside), weights, 0.5), 0, 0.04),
        Check("vtrain, one node, fitted: mean", mean_of("vtrain_single"), 0, 0.05),
        Check("vtrain, several nodes, fitted: mean", mean_of("vtrain_multi"), 0, 0.07),
        Check("simumax, 44 runs on B200, fitted: mean", mean_of("simumax_b200"), 0, 0.03),
        Check("simumax, peak memory allocated: median", allocated, 0, 0.01),
        Check("simumax, peak memory reserved: median", reserved, 0, 0.02),
        Check("korthikanti and megatron_sc21, fitted: mean", float(np.abs(inside[both]).mean()), 0, 0.04),
        Check("one layer of 22B, five ways: mean", float(np.abs(layer_time_errors()).mean()), 0, 0.04),
        Check(
            "90 % band, each family from the others: runs inside",
            covered_when_left_out(runs, outside, widths),
            0.85,
            0.95,
        ),
        Check(
            "the same: half width, runs of quality A", float(np.average(widths[is_a], weights=weights[is_a])), 0, 0.25
        ),
        Check(
            "vtrain, one node: regret of the run predicted fastest, mean", float(regrets(runs, inside).mean()), 0, 0.03
        ),
    ]


def main():
    runs = shipped_runs()
    made = ingredients_of(runs.jobs)
    errors, widths = left_out(runs, made)
    print("\nEach family predicted from the others alone:")
    for family in np.unique(runs.family):
        own = errors[runs.family == family]
        middle, most = np.quantile(np.abs(own), (0.5, 0.9))
        print(
            f"{family:20} {len(own):4d} runs  median {middle:6.1%}  90th {most:6.1%}"
            f"  bias {np.exp(np.log1p(own).mean()) - 1:+6.1%}  band +-{widths[runs.family == family].mean():.0%}"
        )
    print("\nFamilies weigh alike; fitted is in sample, by the shipped factors:")
    for check in checks(runs, made, errors, widths):
        print(check)


if __name__ == "__main__":
    main()
