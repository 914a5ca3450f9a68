"""A case in a process of its own, as a shell would start it: with limits, closed descriptors, and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.trial.case import Case, Outcome, Stream
from tests.trial.variables import IDLE, PACKAGES, ROOT, variables


def run_alone(case: Case, folder: Path) -> Outcome:
    """Run a case in a process of its own, as a shell would."""
    environment = variables(case, folder) | {"PYTHONPATH": str(ROOT)}
    with contextlib.ExitStack() as held:
        process = held.enter_context(
            subprocess.Popen(
                ["sh", "-c", _shell(case), "sh", sys.executable, "-m", PACKAGES[case.command], *case.arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=_descriptor(case.stdout, held),
                stderr=_descriptor(case.stderr, held),
                start_new_session=True,
                bufsize=0,
            )
        )
        held.callback(_end, process.pid)
        first = _send(process, case) if case.signal is not None else b""
        try:
            out, err = process.communicate(timeout=IDLE * case.seconds)
        except subprocess.TimeoutExpired:
            _end(process.pid)
            out, err = process.communicate()
            return _outcome(
                process.returncode, out, first + (err or b""), escaped=f"more than {IDLE * case.seconds:g} s"
            )
    return _outcome(process.returncode, out, first + (err or b""))


def _outcome(code: int, out: bytes | None, err: bytes | None, escaped: str = "") -> Outcome:
    said, wrong = ((text or b"").decode("utf-8", errors="replace") for text in (out, err))
    if code < 0:
        escaped = escaped or f"killed by {signal.Signals(-code).name}"
    return Outcome(code=code, out=said, err=wrong, escaped=escaped)


def _descriptor(kind: Stream, held: contextlib.ExitStack) -> int:
    if kind in ("kept", "ascii"):
        return subprocess.PIPE
    if kind == "closed":
        return subprocess.DEVNULL
    if kind == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    held.callback(os.close, descriptor)
    return descriptor


def _shell(case: Case) -> str:
    """What a shell does before it becomes the command: limits, and the descriptors that it shall not have."""
    limit = f"ulimit -t {case.seconds:.0f}; " + (f"ulimit -v {case.memory // 1024}; " if case.memory else "")
    closed = (" >&-" if case.stdout == "closed" else "") + (" 2>&-" if case.stderr == "closed" else "")
    return f'{limit}exec "$@"{closed}'


def _send(process: subprocess.Popen[bytes], case: Case) -> bytes:
    """Send the signal when so many seconds have passed, or after a line with the word; what was printed until then."""
    assert case.signal is not None
    said = b""
    while case.signal_at and process.poll() is None:
        assert process.stderr is not None
        said += (line := process.stderr.readline())
        if case.signal_at.encode() in line:
            break
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=case.signal_after)
    if process.poll() is None:
        process.send_signal(case.signal)
    return said


def _end(pid: int) -> None:
    """End what is left of the session that a process began."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
