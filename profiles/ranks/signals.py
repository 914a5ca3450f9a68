"""The signals that ask a program to end, those of them that this system has. Torch-free."""

from __future__ import annotations

import signal

# What `kill`, a closed terminal and Ctrl-\ send; Windows has the first alone.
STOPPING = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
