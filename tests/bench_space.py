"""The largest search that is timed, apart from all else: what other benches load would count as its memory."""

from __future__ import annotations

import json
import statistics
import time

from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.question import Setting, setting
from profiles.library import load_sizes
from profiles.machines.devices import load_device
from tests.bench_gate import most_memory_bytes, workload_seconds

# Of a search, after which the workload runs again.
SECONDS_BETWEEN = 0.5


def big_setting() -> Setting:
    """GPT-3 175B on 4,096 A100: every layout, schedule, micro-batch, recomputation; with all offloads too."""
    return setting(load_sizes("gpt3-175b"), load_device("a100-sxm-80gb"), 4096, 3072, 2048)


def explore_big() -> None:
    """Print of the whole space of `big_setting`, in a process of its own: plans, seconds, ratio, most memory held.

    The workload runs again and again between blocks of the search, and is not counted.
    """
    taken, wall, spent = [workload_seconds()], 0.0, 0.0
    last = time.process_time()

    def interleave(share: float, words: str) -> None:
        nonlocal wall, spent, last
        if time.process_time() - last < SECONDS_BETWEEN:
            return
        start, computed = time.perf_counter(), time.process_time()
        taken.append(workload_seconds())
        last = time.process_time()
        wall, spent = wall + time.perf_counter() - start, spent + last - computed

    start, computed = time.perf_counter(), time.process_time()
    space = explore(big_setting(), Options(), on_progress=interleave)
    seconds, computed = time.perf_counter() - start - wall, time.process_time() - computed - spent
    print(json.dumps([space.generated, seconds, computed / statistics.mean(taken), most_memory_bytes()]))
