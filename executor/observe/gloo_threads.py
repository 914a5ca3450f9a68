"""Threads that carry gloo's messages, by what Linux tells of them: whether one still has something to do."""

from __future__ import annotations

import time
from pathlib import Path

# As torch calls them.
NAME = "pt_gloo_runloop"
TASKS = Path("/proc/self/task")
# They hand a message over before they note that it has ended: seen asleep thrice, they have done both.
LOOK_SECONDS, NUM_LOOKS = 0.01, 3
# How long one may go on, and what is waited where they cannot be seen.
LATEST_SECONDS, UNSEEN_SECONDS = 10.0, 0.1
ASLEEP = "S"


def wait_until_idle(tasks: Path = TASKS) -> None:
    """Wait until none of gloo's threads runs, or would run if it had a core.

    Torch's profiler is told of a message's end by them, after those that wait for it go on. What comes once the
    profiler has stopped is written to memory that it has given back, which shows as a crash somewhere later.
    """
    deadline, asleep = time.monotonic() + LATEST_SECONDS, 0
    while asleep < NUM_LOOKS and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        states = _states(tasks)
        if not states:
            time.sleep(UNSEEN_SECONDS)
            return
        asleep = asleep + 1 if set(states) == {ASLEEP} else 0


def _states(tasks: Path) -> list[str]:
    """One letter for each of the threads, as proc(5) has it."""
    found = []
    try:
        for task in tasks.iterdir():
            if (task / "comm").read_text(encoding="utf-8").strip() == NAME:
                # The name stands in brackets, and may have any letters.
                found.append((task / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0])
    except OSError:
        # No Linux, or a thread that ends meanwhile.
        return []
    return found
