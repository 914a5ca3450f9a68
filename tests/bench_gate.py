"""What `make bench` holds its numbers against: a fixed workload, the recorded numbers, and how much worse is too much.

Times are compared as processor seconds over those of the workload, run in turns with what is timed: so a record holds
on a slower machine too, and other work on the machine counts little.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "bench.json"
WORSE_FRACTION = 0.15
# Changes below this are those of one run against the next.
SAME_FRACTION = 0.03
# A block of numbers stays in a core's cache, as those of the search do.
NUM_BLOCKS, BLOCK = 32, 32768
# The workload is repeated for so long: single runs of some milliseconds differ.
WORKLOAD_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Line:
    """One number now and as recorded, None where it is missing; larger is worse."""

    name: str
    now: float | None
    recorded: float | None
    is_gated: bool

    @property
    def change_fraction(self) -> float | None:
        """By how much of the recorded number it is larger now; None where one of the two is missing."""
        return None if self.now is None or self.recorded is None else self.now / self.recorded - 1

    @property
    def is_too_bad(self) -> bool:
        """Whether the gate is shut for it."""
        return self.is_gated and self.change_fraction is not None and self.change_fraction > WORSE_FRACTION


def processor_seconds() -> float:
    """Seconds that this process and those that it waited for have computed."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def most_memory_bytes() -> int:
    """The most memory that this process has held.

    What getrusage says of a process may be what the one held that started it.
    """
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def workload_seconds() -> float:
    """Processor seconds of the fixed workload: a million numbers through a handful of array operations."""
    values = np.linspace(-1.0, 1.0, NUM_BLOCKS * BLOCK).reshape(NUM_BLOCKS, BLOCK)
    result = np.empty(BLOCK)
    start, runs = time.process_time(), 0
    while time.process_time() - start < WORKLOAD_SECONDS:
        for block in values:
            np.exp(block, out=result)
            np.add(result, block, out=result)
            np.multiply(result, block, out=result)
            result.argmin()
        runs += 1
    return (time.process_time() - start) / runs


def compared(now: Mapping[str, float], recorded: Mapping[str, float], gated: Collection[str]) -> list[Line]:
    """A line for every number that is measured now, recorded, or both."""
    names = list(dict.fromkeys([*now, *recorded]))
    return [Line(name, now.get(name), recorded.get(name), name in gated) for name in names]


def table(lines: Sequence[Line]) -> Iterator[str]:
    """The numbers now, as recorded, and the change; then what is missing."""
    yield f"{'':52s} {'now':>10s} {'recorded':>10s} {'change':>8s}"
    for line in lines:
        change = line.change_fraction
        if change is None:
            continue
        word = "" if abs(change) < SAME_FRACTION else "larger or slower" if change > 0 else "smaller or faster"
        word = f"more than {WORSE_FRACTION:.0%} worse" if line.is_too_bad else word
        yield f"{line.name:52s} {line.now:10.4g} {line.recorded:10.4g} {change:+8.1%} {word}".rstrip()
    for line in lines:
        if line.change_fraction is None:
            yield f"{line.name}: {'not measured' if line.now is None else 'not recorded'}"


def judge(now: Mapping[str, float], gated: Collection[str], is_part: bool, path: Path = GOLDEN) -> int:
    """Print what changed since the record, and return 1 where a gated number is too much worse, else 0.

    `is_part` tells that only some numbers were to be measured: the others are not missed.
    """
    recorded = json.loads(path.read_text(encoding="utf-8"))["numbers"] if path.exists() else {}
    if is_part:
        recorded = {name: value for name, value in recorded.items() if name in now}
    lines = compared(now, recorded, gated)
    print("\n".join(table(lines)))
    return int(any(line.is_too_bad for line in lines))


def record(now: Mapping[str, float], machine: str, path: Path = GOLDEN) -> None:
    """Write the numbers, and on what they were measured."""
    rounded = {name: float(f"{value:.4g}") for name, value in now.items()}
    path.write_text(json.dumps({"machine": machine, "numbers": rounded}, indent=1) + "\n", encoding="utf-8")
