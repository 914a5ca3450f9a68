"""Processes of ranks as the kernel sees them: whose life they are bound to, and which is which. Torch-free."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

LAUNCHER_VARIABLE = "TRAINWRIGHT_LAUNCHER"


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when the one that started it dies, even by SIGKILL (Linux).

    Where that is not `parent`, it died before it could be asked about, and this process ends at once.
    """
    death_signal_option = 1  # PR_SET_PDEATHSIG of prctl(2)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(death_signal_option, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def process_path(folder: Path, attempt: int, rank: int) -> Path:
    """Where a rank leaves which process it is."""
    return folder / f"process-{attempt}-{rank}"


def birth(process: int) -> str:
    """What tells a process from a later one of the same number; "" where it is gone, or dead and only counted still."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
