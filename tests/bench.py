"""`make bench`: how fast the program itself is. Medians of repeats that take turns, with the spread and the machine."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from planner.estimate import estimate, pricing
from planner.search import Choices, search
from profiles.devices import load_device, machine_of
from profiles.fingerprint import current_fingerprint
from profiles.library import load_model, trace_model

REPEATS = 7


def seconds_of(actions: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Median seconds and spread (interquartile range / median) of each action, taken in turns after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(REPEATS + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if repeat:
                times[name].append(time.perf_counter() - start)
    result = {}
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4)
        result[name] = (middle, (high - low) / middle)
    return result


def command(*arguments: str) -> Callable[[], object]:
    """A whole process, start included."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def main() -> None:
    """Print the table."""
    here = current_fingerprint("cpu")
    print(
        f"{here.device}, {here.num_cores} cores, Python {here.python}, torch {here.torch}; {REPEATS} repeats in turns"
    )
    model, device = load_model("llama-3.1-8b"), load_device("h100-sxm")
    choices = Choices(num_devices=512, global_batch_size=4096, sequence_length=4096, precisions=("bf16",))
    found = search(machine_of(device, 512), model, choices)
    table, shared = found.priced[0].table, found.priced[0].shared
    one = table.take(np.array([0]))
    alone = pricing(shared.machine, model, one, 4096)
    plan = ("-m", "planner", "--model", "llama-3.1-8b", "--device", "h100-sxm")
    timed = seconds_of(
        {
            "python, empty program": command("-c", "pass"),
            "plan --help": command("-m", "planner", "--help"),
            "plan, 8B on 64": command(*plan, "--gpus", "64"),
            "plan, 8B on 512": command(*plan, "--gpus", "512"),
            "trace an 8B model, two precisions": lambda: trace_model("llama-3.1-8b"),
            f"price {len(table)} plans as a table": lambda: estimate(shared, table),
            "price 1 plan as a table of one": lambda: estimate(alone, one),
        }
    )
    for name, (middle, spread) in timed.items():
        print(f"{name:40s} {middle * 1e3:10.1f} ms  spread {spread:5.0%}")
    per_plan = timed[f"price {len(table)} plans as a table"][0] / len(table)
    print(f"closed form: {1 / per_plan:,.0f} plans/s, {timed['price 1 plan as a table of one'][0] / per_plan:,.0f} x")
    print("the rate of one plan at a time")


if __name__ == "__main__":
    main()
