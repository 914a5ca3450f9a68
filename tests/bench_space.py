"""The largest search that is timed, apart from all else: what other benches load would count as its memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.measured_setting import measured_setting
from planner.space.question import Setting, setting
from profiles import artifacts
from profiles.library import load_model, load_sizes
from profiles.machines.devices import load_device
from profiles.machines.profile import MachineProfile
from tests.bench_gate import most_memory_bytes, workload_seconds

MEASURED_MODEL = "llama-3.1-70b"
# Of a search, after which the workload runs again.
SECONDS_BETWEEN = 0.5


def big_setting() -> Setting:
    """GPT-3 175B on 4,096 A100: every layout, schedule, micro-batch, recomputation; with all offloads too."""
    return setting(load_sizes("gpt3-175b"), load_device("a100-sxm-80gb"), 4096, 3072, 2048)


def write_twin(path: str) -> None:
    """Write two nodes of H100 as if published laws had been measured, with the layers of Llama 70B."""
    from tests.twin import QUESTIONS, published
    from tests.twin_machine import twin

    asked = next(one for one in QUESTIONS if one.model == MEASURED_MODEL)
    artifacts.write(Path(path), "machine-profile", twin(published(asked), load_model(asked.model), asked.measured))


def explore_big() -> None:
    """Print of the whole space of `big_setting` what `explored` says of it."""
    explored(big_setting())


def explore_measured() -> None:
    """Print the same of Llama 70B on 4,096 H100 of which two nodes were measured, as a command does that reads them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "machine.json"
        script = f"from tests.bench_space import write_twin; write_twin({str(path)!r})"
        subprocess.run([sys.executable, "-c", script], check=True)
        machine = artifacts.read(path, "machine-profile", MachineProfile)
    explored(measured_setting(machine, load_model(MEASURED_MODEL), 4096, 3072, 4096, "bf16"))


def explored(at: Setting) -> None:
    """Print of the whole space of a setting, in a process of its own: plans, seconds, ratio, most memory held.

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
    space = explore(at, Options(), on_progress=interleave)
    seconds, computed = time.perf_counter() - start - wall, time.process_time() - computed - spent
    print(json.dumps([space.generated, seconds, computed / statistics.mean(taken), most_memory_bytes()]))
