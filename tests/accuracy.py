"""What the shipped runs say of families the factors have not seen: `make accuracy`."""

import numpy as np

from planner.jobs.bands import scale_for
from planner.jobs.calibrate import shipped_runs
from planner.jobs.ingredients import ingredients_of
from planner.jobs.learning import family_weights, leave_one_family_out


def left_out_errors():
    """Runs, predicted over measured minus 1 from the other families, and half widths of bands that hold 90 %."""
    runs = shipped_runs()
    left_out = leave_one_family_out(runs, ingredients_of(runs.jobs))
    logarithms = np.log(left_out.step_seconds / runs.step_seconds)
    scale = scale_for(logarithms, left_out.spread, family_weights(runs.family))
    return runs, left_out.step_seconds / runs.step_seconds - 1, np.exp(scale * left_out.spread) - 1


def weighted_quantile(values, weights, share):
    order = np.argsort(values)
    return values[order][np.searchsorted(np.cumsum(weights[order]), share * weights.sum())]


def main():
    runs, errors, widths = left_out_errors()
    print("\nEach family predicted from the others alone:")
    for family in np.unique(runs.family):
        own = errors[runs.family == family]
        middle, most = np.quantile(np.abs(own), (0.5, 0.9))
        print(
            f"{family:20} {len(own):4d} runs  median {middle:6.1%}  90th {most:6.1%}"
            f"  bias {np.exp(np.log1p(own).mean()) - 1:+6.1%}  band +-{widths[runs.family == family].mean():.0%}"
        )
    weights = family_weights(runs.family)
    median, most = (weighted_quantile(np.abs(errors), weights, share) for share in (0.5, 0.9))
    bias = np.exp((weights * np.log1p(errors)).sum()) - 1
    print(
        f"all, families alike: median {median:.1%} (goal 6 %), 90th {most:.1%} (goal 16 %), bias {bias:+.1%} (goal 2 %)"
    )


if __name__ == "__main__":
    main()
