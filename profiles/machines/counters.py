"""What Linux counts while something is measured: time on the cores and off them, waits for memory. Torch-free.

Where the system does not tell (another kernel, a sandbox without /proc, no memory limit), the number is None, not zero.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

ROOT = Path("/")
MICROSECONDS, NANOSECONDS = 1e-6, 1e-9
# What a page read back from a swap file on a solid-state disk takes.
SWAPPED_PAGE_SECONDS = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Seconds that went by for one process, and what it and the cores it may use did in them.

    `own_seconds` is processor time of the process and of the children it has waited for; `waited_seconds` those in
    which the calling thread was ready to run without being let; `busy_seconds` those that any process spent on `cores`,
    all cores together, and `stolen_seconds` those that the hypervisor gave to other machines. Of the process's control
    group: `throttled_seconds`, in which a limit on processor time held it back, all cores together; `stalled_seconds`,
    in which some process waited for memory.
    """

    host: str
    cores: tuple[int, ...]
    seconds: float
    own_seconds: float
    waited_seconds: float | None = None
    busy_seconds: float | None = None
    stolen_seconds: float | None = None
    throttled_seconds: float | None = None
    stalled_seconds: float | None = None

    def plus(self, other: Counters, sign: int = 1) -> Counters:
        """The sum (or with -1 the difference), number by number; unknown where one of the two is."""
        sums: dict[str, float | None] = {}
        for field in fields(self):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            if field.name.endswith("seconds"):
                sums[field.name] = None if mine is None or others is None else mine + sign * others
        return replace(self, **sums)  # type: ignore[arg-type]


class Watch:
    """Counts, for the process and its `cores`, over all the times that it is entered, which may be many."""

    def __init__(self, cores: Iterable[int]) -> None:
        self._start = read_counters(tuple(sorted(cores)))
        self.counted = self._start.plus(self._start, -1)

    def __enter__(self) -> Watch:
        self._start = read_counters(self.counted.cores)
        return self

    def __exit__(self, *_: object) -> None:
        self.counted = self.counted.plus(read_counters(self.counted.cores).plus(self._start, -1))


def read_counters(cores: tuple[int, ...], root: Path = ROOT) -> Counters:
    """Everything as it stands now, for the calling thread's process and these cores."""
    busy, stolen = _core_seconds(cores, root)
    # Seconds run and waited, and how often it ran: never, where the kernel does not count them.
    waited = [int(word) for word in _read(root / "proc/thread-self/schedstat").split()]
    return Counters(
        host=socket.gethostname(),
        cores=cores,
        seconds=time.monotonic(),
        own_seconds=_own_seconds(),
        waited_seconds=waited[1] * NANOSECONDS if len(waited) == 3 and waited[2] else None,
        busy_seconds=busy,
        stolen_seconds=stolen,
        throttled_seconds=_throttled_seconds(root),
        stalled_seconds=_stalled_seconds(root),
    )


def _own_seconds() -> float:
    """Processor time of this process and of the children that it has waited for; on Windows to a tick of its clock."""
    try:
        import resource
    except ImportError:
        return sum(os.times()[:4])
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in own)


def available_memory_fraction(root: Path = ROOT) -> float | None:
    """Share of the memory that more can be had of without swapping; under a limit, of what the limit leaves."""
    host = {words[0]: float(words[1]) for words in _lines(root / "proc/meminfo") if len(words) > 1}
    shares = [host["MemAvailable:"] / host["MemTotal:"]] if {"MemAvailable:", "MemTotal:"} <= host.keys() else []
    for folder in _groups("memory", root):
        # The newer kind of control group, then the older one.
        for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, taken = _number(folder / most), _number(folder / used)
            if limit and taken is not None:
                kept = {words[0]: float(words[1]) for words in _lines(folder / "memory.stat")}
                # Files kept in memory count as used, but are given up first.
                taken -= kept.get("total_inactive_file", kept.get("inactive_file", 0.0))
                shares.append(max(0.0, 1 - taken / limit))
    return min(shares, default=None)


def _core_seconds(cores: tuple[int, ...], root: Path) -> tuple[float | None, float | None]:
    """Seconds that processes ran on the cores, and that the hypervisor took.

    Ignores: interrupts, most of which are the own messages'.
    """
    names = {f"cpu{core}" for core in cores}
    counts = [[int(word) for word in words[1:]] for words in _lines(root / "proc/stat") if words[0] in names]
    if len(counts) < len(names) or not all(any(ticks) for ticks in counts):
        return None, None
    tick_seconds = 1 / os.sysconf("SC_CLK_TCK")
    # Columns: user, nice, system, idle, waiting for disks, interrupts (two kinds), stolen.
    busy = sum(sum(ticks[:3]) for ticks in counts) * tick_seconds
    return busy, sum(ticks[7] for ticks in counts) * tick_seconds if len(counts[0]) > 7 else None


def _throttled_seconds(root: Path) -> float | None:
    for folder in _groups("cpu", root):
        stat = {words[0]: float(words[1]) for words in _lines(folder / "cpu.stat")}
        if "throttled_usec" in stat:
            return stat["throttled_usec"] * MICROSECONDS
        if "throttled_time" in stat:
            return stat["throttled_time"] * NANOSECONDS
    return None


def _stalled_seconds(root: Path) -> float | None:
    """Seconds in which some process waited for memory; where the kernel does not count them, from the pages swapped."""
    for path in (*(folder / "memory.pressure" for folder in _groups("memory", root)), root / "proc/pressure/memory"):
        for words in _lines(path):
            if words[0] == "some":
                return float(words[-1].removeprefix("total=")) * MICROSECONDS
    pages = {words[0]: int(words[1]) for words in _lines(root / "proc/vmstat")}
    return pages["pswpin"] * SWAPPED_PAGE_SECONDS if "pswpin" in pages else None


@functools.lru_cache(maxsize=16)
def _groups(controller: str, root: Path) -> tuple[Path, ...]:
    """Where this process's control group may stand: at its own path, or in a container at the top.

    Looked for once: that took as long as half of what is read there.
    """
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # The newer kind has one tree, the older one for each controller, or for two that go together.
        top = root / "sys/fs/cgroup" / controllers
        found += [top / path.lstrip("/"), top]
    return tuple(dict.fromkeys(folder for folder in found if folder.is_dir()))


def _number(path: Path) -> float | None:
    text = _read(path).strip()
    return float(text) if text.isdigit() else None


def _lines(path: Path) -> list[list[str]]:
    return [line.split() for line in _read(path).splitlines() if line.strip()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
