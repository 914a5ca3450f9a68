"""One profiled step as a trace that Perfetto opens: torch's own events, and above them the planner's tracks.

The tracks have the names of `plan --trace`, so that a simulated step and a real one can be laid side by side.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from executor.observe.events import EXCHANGES, StepTrace
from executor.observe.gloo_threads import wait_until_idle
from planner.plans import Plan
from planner.simulate.perfetto import STREAMS, named
from profiles.codecs.codec import ALL_REDUCE
from profiles.files import write_text
from profiles.ranks.rank import Rank

MARK = "trainwright step"
# DTensor alone uses functional collectives; DDP and pipelines call the process group directly.
TENSOR_COLLECTIVE = "_c10d_functional::"
# Parts of a step by the axis that sends within passes.
EXCHANGE_PARTS = {"tensor": "tensor_comm", "context": "context_comm", "expert": "expert_comm", "data": "data_comm"}
# As FSDP2 calls in a profile what it does around its messages, the waiting for them and the copying included. Not
# documented; where the names change, FSDP's part is seen as nothing, which a test would tell.
SHARDED = ("FSDP::all_gather", "FSDP::post_backward_reduce")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """One step under torch's profiler, marked by name, with the clock that actions are noted by at the mark's ends."""

    profiler: profile
    trace: StepTrace
    start_seconds: float
    stop_seconds: float


def profiled(step: Callable[[], StepTrace], device: torch.device) -> Profiled:
    """Run one step under the profiler."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        # Clocks are told from the ends of the mark.
        with record_function(MARK):
            start = time.perf_counter()
            trace = step()
            stop = time.perf_counter()
        if device.type == "cpu":
            wait_until_idle()
    return Profiled(profiler=profiler, trace=trace, start_seconds=start, stop_seconds=stop)


def exchange_seconds(step: Profiled) -> dict[str, float]:
    """Seconds of the step in collectives within passes, by part: of DTensor, of attention, of experts, of FSDP2."""
    seconds = dict.fromkeys(EXCHANGE_PARTS.values(), 0.0)
    axes = {name: axis for axis, name in EXCHANGES.items()}
    for event in step.profiler.key_averages():
        if event.key.startswith(TENSOR_COLLECTIVE):
            seconds[EXCHANGE_PARTS["tensor"]] += float(event.self_cpu_time_total) * 1e-6
        elif event.key.startswith(SHARDED):
            seconds[EXCHANGE_PARTS["data"]] += float(event.cpu_time_total) * 1e-6
        elif event.key in axes:
            seconds[EXCHANGE_PARTS[axes[event.key]]] += float(event.cpu_time_total) * 1e-6
    return seconds


def write_trace(folder: Path, plan: Plan, rank: Rank, step: Profiled) -> Path:
    """Write this rank's trace of the step into `folder`, whole or not at all; where.

    Raises: EnvironmentFailure where the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        exported = Path(scratch, "trace.json")
        step.profiler.export_chrome_trace(str(exported))
        content = json.loads(exported.read_text(encoding="utf-8", errors="replace"))
    events = content["traceEvents"]
    content["traceEvents"] = [*_planned_tracks(rank.rank, step, events), *events]
    content["otherData"] = {"plan": plan.id, "origin": "measured", "step_seconds": step.trace.seconds}
    path = folder / f"{re.sub('[^A-Za-z0-9]+', '-', plan.id)}.rank{rank.rank}.trace.json"
    write_text(path, json.dumps(content) + "\n")
    return path


def _planned_tracks(rank: int, step: Profiled, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The step's actions on the planner's tracks, as events."""
    mark = next(event for event in events if event.get("name") == MARK and event["ph"] == "X")
    # The profiler's clock is an approximation, off by some tenths of a percent within a step: both ends are matched.
    scale = mark["dur"] / (step.stop_seconds - step.start_seconds)
    found: list[dict[str, Any]] = [
        {
            "name": action.name,
            "cat": "data" if action.name == ALL_REDUCE else "compute",
            "ts": mark["ts"] + (action.start_seconds - step.start_seconds) * scale,
            "dur": action.seconds * scale,
            "args": {"stage": action.stage, "microbatch": action.microbatch},
        }
        for action in step.trace.actions
    ]
    found += [
        {"name": event["name"].removeprefix(TENSOR_COLLECTIVE), "cat": "tensor", "ts": event["ts"], "dur": event["dur"]}
        for event in events
        if event.get("name", "").startswith(TENSOR_COLLECTIVE) and event["ph"] == "X"
    ]
    found += [
        {"name": "all-to-all", "cat": axis, "ts": event["ts"], "dur": event["dur"]}
        for axis, name in EXCHANGES.items()
        for event in events
        if event.get("name") == name and event["ph"] == "X"
    ]
    tracks = [named("process_name", rank, 0, name=f"rank {rank}, as planned")]
    for stream in sorted({event["cat"] for event in found}, key=STREAMS.index):
        thread = STREAMS.index(stream)
        tracks.append(named("thread_name", rank, thread, name=stream))
        tracks.append(named("thread_sort_index", rank, thread, sort_index=thread))
    return [*tracks, *({"ph": "X", "pid": rank, "tid": STREAMS.index(event["cat"]), **event} for event in found)]
