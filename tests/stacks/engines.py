"""Engines beside this program on two ranks: `python -m tests.stacks.engines NAME [STEPS]`.

Every plan is run by both in turns in one launch; told are how far the first ten losses are from one device's, and the
ratio of a step to this program's.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from executor.run.beside import ratios
from tests.test_engines_run import PLANS, run_by


def main() -> int:
    name, *rest = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        run = run_by(name, Path(folder), PLANS[name], "--engine", "trainwright", steps=int(rest[0]) if rest else 20)
    theirs = [one for one in run.runs if one.engine == name]
    passed = sum(one.measurement.loss_check.status == "passed" for one in theirs)
    found = list(ratios(run.runs))
    for one, ratio in zip(theirs, found, strict=True):
        check = one.measurement.loss_check
        off = f"{check.largest_difference_fraction:.0e}" if check.largest_difference_fraction is not None else "-"
        print(f"{one.plan.id:32} losses off by {off}, {ratio.median:.2f} ({ratio.least:.2f} to {ratio.most:.2f})")
    exact = max(
        one.measurement.loss_check.largest_difference_fraction or 0.0 for one in theirs if one.plan.precision == "fp32"
    )
    middle = statistics.median(ratio.median for ratio in found)
    print(f"{name}: {passed} of {len(theirs)} accepted, losses in fp32 off by {exact:.0e}, steps {middle:.2f} of ours")
    return int(passed < len(theirs))


if __name__ == "__main__":
    sys.exit(main())
