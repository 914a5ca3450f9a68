"""What the shipped runs say, as one table of checks and goals: `make accuracy`.

Every check predicts from configurations alone. "Fitted on all" is in sample; "left out by family" predicts each family
by what the others taught, without the kernel tables of the same machine, and so on. Families weigh alike. Beside every
line stands what the rule "model FLOPs at 42 % of the dense 16-bit peak" reaches on the same runs. With `--record` the
lines go to tests/golden/accuracy.csv, behind which none may fall. What laws and entries of stacks have by hand, all of
memory among it, was set with these runs in view and is never left out: no line of memory is out of sample.
"""

import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner.cost.error_bands import FARTHEST, half_width, scales_at
from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.published.calibrate import shipped_runs
from planner.published.learn import family_weights, learn, predict
from planner.published.left_out import (
    FAMILY,
    GENERATION,
    MECHANISM,
    PRECISION,
    STACK,
    band_scales,
    is_covered,
    leave_out,
    weights_by_distance,
)
from tests.accuracy_rows import (
    adapter_errors,
    best_ranking,
    fitted,
    layer_time_errors,
    memory_errors,
    peaks,
    qualities,
    ranking,
    regrets,
    rule_errors,
    weighted_quantile,
)

RECORD = Path(__file__).parent / "golden" / "accuracy.csv"


@dataclass(frozen=True)
class Check:
    """One line of the table: what was reached, what it should be, and what the rule reaches on the same runs."""

    name: str
    reached: float
    low: float
    high: float
    rule: float | None = None
    is_share: bool = True
    count: str = ""

    @property
    def holds(self):
        return self.low <= self.reached <= self.high

    def __str__(self):
        def shown(value):
            return f"{value:.1%}" if self.is_share else f"{value:.2f}"

        goal = f"<= {shown(self.high)}" if self.low == 0 else f">= {shown(self.low)}"
        word = "holds" if self.holds else "MISSED"
        if self.high == np.inf:
            goal, word = "none", ""
        if self.is_share and self.low > 0:
            goal = f"{self.low:.0%} to {self.high:.0%}"
        rule = "" if self.rule is None else shown(self.rule)
        return f"{self.name + self.count:72} {shown(self.reached):>7}  goal {goal:12} {word:7} rule {rule:>7}"


def memory_checks():
    """Peaks, and whether runs fit."""
    errors, weights, fits, ran, is_out = peaks()
    count, name = f" ({len(errors)} runs)", "peak memory, laws set in view of these runs: "
    return [
        Check(name + "median", weighted_quantile(errors, weights, 0.5), 0, 0.04, count=count),
        Check(name + "90th percentile", weighted_quantile(errors, weights, 0.9), 0, 0.12, count=count),
        Check("runs that ran called not fitting", share(~fits[ran]), 0, 0.03, count=f" ({ran.sum()} runs)"),
        Check("out-of-memory runs called fitting", share(fits[is_out]), 0, 0, count=f" ({is_out.sum()} runs)"),
    ]


def share(flags):
    return float(flags.mean()) if len(flags) else 0.0


def fitted_checks(runs, inside, rule):
    """What is in sample."""
    weights, is_a = family_weights(runs.family), qualities(runs) == "A"

    def median(errors, chosen):
        return weighted_quantile(np.abs(errors[chosen]), family_weights(runs.family[chosen]), 0.5)

    def mean(errors, *families):
        return float(np.abs(errors[np.isin(runs.family, families)]).mean())

    def line(name, high, statistic, *arguments):
        return Check(name, statistic(inside, *arguments), 0, high, statistic(rule, *arguments))

    vtrain = [name for name in np.unique(runs.family) if name.startswith("vtrain")]
    lost, lost_by_rule = regrets(runs, inside), regrets(runs, rule)
    allocated, reserved = memory_errors("simumax_b200")
    return [
        line("step time, fitted on all, quality A: median", 0.035, median, is_a),
        line("step time, fitted on all: median", 0.05, median, weights > 0),
        Check("the same with the offset of its site: median", median(_at_sites(runs, inside), weights > 0), 0, np.inf),
        line("vtrain, fitted: mean", 0.065, mean, *vtrain),
        Check("vtrain, fitted: regret of the run predicted fastest, mean", lost.mean(), 0, 0.02, lost_by_rule.mean()),
        line("simumax on B200, fitted: mean", 0.025, mean, "simumax_b200"),
        Check("simumax on B200, peak memory allocated: median", allocated, 0, 0.005),
        Check("simumax on B200, peak memory reserved: median", reserved, 0, 0.02),
        line("korthikanti and megatron_sc21, fitted: mean", 0.04, mean, "korthikanti", "megatron_sc21"),
        Check("one layer of 22B, five ways: mean", float(np.abs(layer_time_errors()).mean()), 0, 0.04),
    ]


def _at_sites(runs, errors):
    """Errors of predictions that know what each family's site takes beside the model, as no prediction does."""
    offsets = load_learned().offsets
    return (1 + errors) * np.exp([offsets.get(str(name), 0.0) for name in runs.family]) - 1


def left_out_checks(runs, found, rule):
    """Predictions of what was not learned from."""
    errors, result = np.expm1(found.errors(runs)), []
    for kind in (FAMILY, STACK, GENERATION, PRECISION, MECHANISM):
        own = found.kind == kind
        run = found.run[own]
        # Within every part families weigh alike; so do the mechanisms, each a part of its own.
        weights = family_weights(np.char.add(np.char.add(runs.family[run], " "), _part(found, own, kind)))
        middle, most = (0.07, 0.18) if kind == FAMILY else (0.10, 0.25)
        for name, share, high in (("median", 0.5, middle), ("90th percentile", 0.9, most)):
            reached, other = (weighted_quantile(np.abs(values), weights, share) for values in (errors[own], rule[run]))
            result.append(Check(f"left out by {kind}: {name}", reached, 0, high, other))
        if kind == FAMILY:
            bias, other = (abs(np.exp(weights @ np.log1p(values)) - 1) for values in (errors[own], rule[run]))
            result.append(Check("left out by family: bias, either way", bias, 0, 0.02, other))
    return [*result, *adapter_checks()]


def adapter_checks():
    """Fine-tuning of adapters, which no run that is learned from did."""
    errors = np.abs(adapter_errors())
    name, count = "adapters alone, never learned from: ", f" ({len(errors)} runs)"
    return [
        Check(name + "median", float(np.median(errors)), 0, np.inf, count=count),
        Check(name + "90th percentile", float(np.quantile(errors, 0.9)), 0, np.inf, count=count),
    ]


def _part(found, own, kind):
    return found.part[own] if kind == MECHANISM else np.full(int(own.sum()), "")


def band_checks(runs, found):
    """Coverage of bands set without the family of the run, and their half width, by distance."""
    inside, weights = is_covered(found, runs), weights_by_distance(found, runs)
    widths = np.expm1(found.spread * scales_at(band_scales(found, runs), found.distance))
    result = []
    for number in range(FARTHEST + 1):
        own = found.distance == number
        if not own.any():
            continue
        name = f"bands at distance {number}{' or more' if number == FARTHEST else ''}: "
        held, width = (float(np.average(values[own], weights=weights[own])) for values in (inside, widths))
        high, count = 0.2 if number == 0 else 0.35, f" ({own.sum()} runs)"
        result.append(Check(name + "inside", held, 0.85, 0.95, count=count))
        result.append(Check(name + "half width", width, 0, high, count=count))
    return result


def without_family(runs, found):
    """Errors of every run, its family left out."""
    own = found.kind == FAMILY
    outside = np.full(len(runs.jobs), np.nan)
    outside[found.run[own]] = np.expm1(found.errors(runs)[own])
    return outside


def ranking_checks(runs, found, rule):
    """Order of layouts, each family predicted by what the others taught; repeats of one layout are one."""
    lost, order, count = ranking(runs, without_family(runs, found))
    lost_by_rule, order_by_rule, _ = ranking(runs, rule)
    name, words = "ranking of 3 layouts or more, left out by family: ", f" ({count} groups)"
    return [
        Check(name + "regret", lost, 0, 0.03, lost_by_rule, count=words),
        Check(name + "Spearman", order, 0.8, 1.0, order_by_rule, is_share=False, count=words),
    ]


def checks(runs, made, found):
    """All lines of the table."""
    rule = rule_errors(runs)
    return [
        *fitted_checks(runs, fitted(runs, made), rule),
        *left_out_checks(runs, found, rule),
        *band_checks(runs, found),
        *memory_checks(),
        *ranking_checks(runs, found, rule),
    ]


def left_out():
    """Runs, their ingredients, and each predicted without what it is part of."""
    runs = shipped_runs()
    made = ingredients_of(runs.jobs)
    return runs, made, leave_out(runs, made, learn(runs, made))


def recorded():
    """What every line reached when it was recorded, by name."""
    with RECORD.open(newline="") as stream:
        return {row["line"]: float(row["reached"]) for row in csv.DictReader(stream)}


def record(runs, made, found):
    """Write what every line, and the median of every family, reached: `python -m tests.accuracy --record`."""
    reached = {check.name: check.reached for check in found} | family_medians(runs, fitted(runs, made))
    RECORD.write_text("\n".join(["line,reached", *(f'"{name}",{value:.4f}' for name, value in reached.items())]) + "\n")


def family_medians(runs, errors):
    """The median of every family by the name of its line."""
    return {f"{name}: median": float(np.median(np.abs(errors[runs.family == name]))) for name in np.unique(runs.family)}


def by_part(runs, found):
    """A line for everything that was left out."""
    errors = np.expm1(found.errors(runs))
    for kind in (FAMILY, STACK, GENERATION, PRECISION, MECHANISM):
        for part in np.unique(found.part[found.kind == kind]):
            own = (found.kind == kind) & (found.part == part)
            middle, most = np.quantile(np.abs(errors[own]), (0.5, 0.9))
            near = " ".join(f"{np.mean(found.distance[own] == number):4.0%}" for number in range(FARTHEST + 1))
            yield (
                f"{kind:10} {part:22} {own.sum():5d} runs  median {middle:6.1%}  90th {most:6.1%}"
                f"  bias {np.exp(np.log1p(errors[own]).mean()) - 1:+6.1%}  distance 0, 1, 2, 3+: {near}"
            )


def main():
    start = time.perf_counter()
    runs, made, found = left_out()
    print("\nWhat was left out, predicted by what the others taught:")
    print("\n".join(by_part(runs, found)))
    shipped = half_width(runs.jobs, predict(made, load_learned()), load_learned())
    print(f"\nShipped bands of the shipped runs: +-{np.expm1(shipped).mean():.0%} on average")
    print("Families weigh alike; fitted is in sample, by the shipped factors:")
    lines = checks(runs, made, found)
    print("\n".join(map(str, lines)))
    best = best_ranking(runs, without_family(runs, found))
    print(f"Two measurements of those layouts, 2 % apart as repeats are, would agree at Spearman {best:.2f}")
    if "--record" in sys.argv[1:]:
        record(runs, made, lines)
    sys.stdout.write(f"{time.perf_counter() - start:.0f} s\n")


if __name__ == "__main__":
    main()
