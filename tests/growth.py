"""What measuring and logging take in a long run: `python -m tests.growth`, some minutes, two ranks.

Memory of each rank after the first fifth of many steps of a tiny model and at the end; and, of a small one, the time of
blocks of steps that are measured and logged over that of the blocks between them, in which nothing is noted, told or
waited for.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from executor.run.session import BLOCK_STEPS
from planner.plans import Plan
from profiles.models.profile import WorkloadSpec
from profiles.ranks.launcher import launch
from tests.growth_entries import grown_bytes
from tests.plan_builders import LLAMA, make_plan_file

PLANS = {
    "dp2": Plan(data_parallel=2, micro_batch_size=4),
    "pp2": Plan(pipeline_parallel=2, schedule="1f1b", stage_bounds=(0, 3), num_microbatches=4, micro_batch_size=2),
}
SMALL = replace(LLAMA, config={**LLAMA.config, "hidden_size": 256, "intermediate_size": 512})
SEQUENCE = 64


def grow(plan: Plan, num_steps: int, *, spec: WorkloadSpec = LLAMA, in_turns: bool = False) -> list[dict[str, Any]]:
    """What each rank has to tell of so many steps."""
    file = make_plan_file(plan, spec=spec, sequence=SEQUENCE)
    payload = {"file": asdict(file), "num_steps": num_steps, "in_turns": in_turns}
    found: list[dict[str, Any]] = launch("tests.growth_entries:run", payload, 2, "cpu")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--timed-steps", type=int, default=300)
    arguments = parser.parse_args()
    for name, plan in PLANS.items():
        ranks = grow(plan, arguments.steps)
        grown = ", ".join(f"{grown_bytes(rank['memory']) / 2**20:+.2f}" for rank in ranks)
        kept = ranks[0]["kept"]
        print(f"{name}: {arguments.steps} steps, {kept} traces kept: grown by {grown} MiB on the ranks", flush=True)
    for name, plan in PLANS.items():
        ranks = grow(plan, arguments.timed_steps, spec=SMALL, in_turns=True)
        shares = [_share(ranks, clock) for clock in range(2)]
        step = statistics.median(seconds for rank in ranks for seconds, _ in rank["bare"]) / BLOCK_STEPS
        print(
            f"{name}: {arguments.timed_steps} steps of {1e3 * step:.1f} ms: measurement and log {shares[0]:+.2%} of "
            f"the time, {shares[1]:+.2%} of the cores' seconds",
            flush=True,
        )


def _share(ranks: Sequence[dict[str, Any]], clock: int) -> float:
    """By how much a measured block takes longer than the bare one behind it, in the median, the slowest rank's each."""
    pairs = zip(*(zip(rank["measured"], rank["bare"], strict=True) for rank in ranks), strict=True)
    ratios = [max(one[clock] for one, _ in pair) / max(other[clock] for _, other in pair) for pair in pairs]
    return statistics.median(ratios) - 1


if __name__ == "__main__":
    main()
