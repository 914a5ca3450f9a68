"""Whether the kernel killed a process as memory ran out: what the cgroup of this process has counted. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from profiles.units import format_bytes

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Of both versions: where the count stands, and where the limit.
VERSIONS = (("memory.events", "memory.max"), ("memory.oom_control", "memory.limit_in_bytes"))
# Where there is none, the first version says a number of its own.
UNLIMITED_BYTES = 2**60


@dataclass(frozen=True, slots=True)
class Counted:
    """Processes of the cgroup that were killed for memory so far, and what it may hold; None where that is not told."""

    kills: int | None
    limit_bytes: int | None = None


def counted(root: Path = ROOT, own: Path = OWN) -> Counted:
    """What the cgroup of this process has counted."""
    for folder in _folders(root, own):
        for events, limit in VERSIONS:
            found = re.search(r"^oom_kill (\d+)$", _text(folder / events), re.MULTILINE)
            if found:
                most = _text(folder / limit).strip()
                known = most.isdigit() and int(most) < UNLIMITED_BYTES
                return Counted(int(found[1]), int(most) if known else None)
    return Counted(None)


def words_for_a_kill(before: Counted, after: Counted) -> str:
    """Who sent a SIGKILL that nobody of ours sent, as far as is counted."""
    if before.kills is None or after.kills is None:
        return " from outside, or by the kernel for lack of memory"
    if after.kills > before.kills:
        limit = (
            "" if after.limit_bytes is None else f" of the {format_bytes(after.limit_bytes)} that its cgroup may hold"
        )
        return f" by the kernel, as memory ran out{limit}: smaller micro-batches, recomputation or sharding need less"
    return " from outside: memory had not run out"


def _folders(root: Path, own: Path) -> list[Path]:
    """Where the cgroup's files may lie, of either version; in a container its own is at the root."""
    found = []
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            for base in (root / controllers, root / "unified"):
                found += [base / path.lstrip("/"), base]
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
