"""The simulated timeline as a trace that Perfetto and chrome://tracing open: a process per rank, a thread per stream.

Source: Trace Event Format (Google, 2016): complete events, times in microseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner.simulate.step_work import Simulated, SimulatedSpan
from profiles.files import write_text

MICROSECONDS = 1e6
# Threads from top to bottom; other streams follow by name.
STREAMS = ("compute", "tensor", "context", "expert", "data", "pipeline")


def trace_events(simulated: Simulated) -> list[dict[str, Any]]:
    """The events of a trace: names of processes and threads first, then one complete event per span."""
    streams = {*STREAMS, *(span.stream for span in simulated.spans)}
    threads = {stream: number for number, stream in enumerate(sorted(streams, key=_place))}
    num_ranks = len(simulated.busy_seconds[0])
    events: list[dict[str, Any]] = []
    used = sorted({(span.replica, span.rank, span.stream) for span in simulated.spans})
    for replica, rank in sorted({(replica, rank) for replica, rank, _ in used}):
        process = replica * num_ranks + rank
        name = f"pipeline rank {rank}" + (f", replica class {replica}" if len(simulated.busy_seconds) > 1 else "")
        events.append(named("process_name", process, 0, name=name))
        events.append(named("process_sort_index", process, 0, sort_index=process))
    for replica, rank, stream in used:
        process = replica * num_ranks + rank
        events.append(named("thread_name", process, threads[stream], name=stream))
        events.append(named("thread_sort_index", process, threads[stream], sort_index=threads[stream]))
    events += [
        {
            "ph": "X",
            "name": span.name,
            "cat": span.stream,
            "pid": span.replica * num_ranks + span.rank,
            "tid": threads[span.stream],
            "ts": span.start_seconds * MICROSECONDS,
            "dur": (span.stop_seconds - span.start_seconds) * MICROSECONDS,
            "args": _arguments(span),
        }
        for span in sorted(simulated.spans, key=lambda span: span.start_seconds)
    ]
    return events


def write_trace(path: Path, simulated: Simulated, title: str) -> None:
    """Write the trace of one step to `path`, whole or not at all; `title` says which plan it is.

    Raises: EnvironmentFailure where the file cannot be written.
    """
    trace = {
        "traceEvents": trace_events(simulated),
        "displayTimeUnit": "ms",
        "otherData": {"plan": title, "origin": "simulated", "step_seconds": simulated.step_seconds},
    }
    write_text(path, json.dumps(trace, separators=(",", ":"), allow_nan=False) + "\n")


def _place(stream: str) -> tuple[int, str]:
    return STREAMS.index(stream) if stream in STREAMS else len(STREAMS), stream


def named(kind: str, process: int, thread: int, **arguments: str | int) -> dict[str, Any]:
    """An event that gives a process or a thread a name or a place, which `kind` says."""
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": arguments}


def _arguments(span: SimulatedSpan) -> dict[str, int]:
    found = {"stage": span.stage, "microbatch": span.microbatch}
    return {name: value for name, value in found.items() if value >= 0}
