"""A case in this process, by its command's `main`: within bounds of time and memory, all put back afterwards."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

import pytest

from tests.trial.case import GOOD, Case, Outcome, Stream
from tests.trial.variables import IDLE, PACKAGES, variables

# Where hours of work would begin: whatever gets there was accepted.
WORK = (
    "profiles.ranks.launcher:launch",
    "executor.rehearse.all_ranks:rehearse_all",
    "profiles.measure.machine:measure_machine",
)
MEMORY = 4 * 2**30


class Started(BaseException):
    """The work itself would begin."""


class TimedOut(BaseException):
    """The case took longer than it may."""


def run_here(case: Case, folder: Path) -> Outcome:
    """Run a case by its command's `main`; all that it changes in this process is put back."""
    main = importlib.import_module(f"{PACKAGES[case.command]}.command").main
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as held:
        for name in set(os.environ) - set(variables(case, folder)):
            patch.delenv(name)
        for name, value in variables(case, folder).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        patch.setattr(sys, "argv", [case.command, *case.arguments])
        patch.setattr(sys, "dont_write_bytecode", True)
        # Commands import these when they are called, and so get what stands in their place.
        for place in _of_the_command(case):
            patch.setattr(place.replace(":", "."), _start)
        out = held.enter_context(_stream(case.stdout))
        err = held.enter_context(_stream(case.stderr, errors="backslashreplace"))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        held.enter_context(_modules_forgotten(folder))
        held.enter_context(_logged(err))
        held.enter_context(_bounded(case))
        outcome = _called(main)
        return Outcome(
            code=outcome.code, out=_text(out), err=_text(err), escaped=outcome.escaped, started=outcome.started
        )


def _of_the_command(case: Case) -> tuple[str, ...]:
    if case.command == "execute":
        return WORK[:2] if "--rehearse" in case.arguments else WORK[:1]
    return WORK[2:] if case.arguments[:1] in (("machine",), ["machine"]) else ()


def _start(*_: object, **__: object) -> NoReturn:
    raise Started


def _called(main: Any) -> Outcome:
    code, escaped, started = GOOD, "", False
    try:
        main()
    except SystemExit as end:
        code, escaped = (end.code or 0, "") if isinstance(end.code, int | None) else (1, f"SystemExit: {end.code}")
    except Started:
        started = True
    except BaseException as error:
        code, escaped = 1, f"{type(error).__name__}: {error}"[:200]
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # What the interpreter itself does where text is left that cannot be written.
        code, escaped = 120, escaped or f"left unwritten at the end: {error}"
    return Outcome(code=code, out="", err="", escaped=escaped, started=started)


@contextlib.contextmanager
def _stream(kind: Stream, errors: str = "strict") -> Iterator[IO[str] | None]:
    if kind == "closed":
        yield None
    elif kind in ("kept", "ascii"):
        encoding = "ascii" if kind == "ascii" else "utf-8"
        yield io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, newline="")
    else:
        descriptor = os.open("/dev/full", os.O_WRONLY)
        if kind == "gone":
            os.close(descriptor)
            reader, descriptor = os.pipe()
            os.close(reader)
        stream = os.fdopen(descriptor, "w", encoding="utf-8")
        yield stream
        with contextlib.suppress(OSError):
            stream.close()


def _text(stream: Any) -> str:
    if stream is None or not isinstance(stream.buffer, io.BytesIO):
        return ""
    stream.flush()
    return str(stream.buffer.getvalue().decode("utf-8", errors="replace"))


@contextlib.contextmanager
def _logged(stream: IO[str] | None) -> Iterator[None]:
    """Warnings and errors of libraries go where they would without pytest: to standard error."""
    handler = logging.StreamHandler(stream or io.StringIO())
    handler.setLevel(logging.WARNING)
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


@contextlib.contextmanager
def _modules_forgotten(folder: Path) -> Iterator[None]:
    """Forget the modules of a case's own folder, and where they were looked for."""
    known, path = set(sys.modules), list(sys.path)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - known:
            if str(folder) in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]
        sys.path_importer_cache.pop(str(folder), None)


@contextlib.contextmanager
def _bounded(case: Case) -> Iterator[None]:
    """Bound the time of the processor, which others on a busy machine do not use up, the address space, and files."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TimedOut(f"more than {case.seconds:g} s of computing")

    assert threading.current_thread() is threading.main_thread()
    # Libraries for CUDA map more than the bound when torch is first imported, which is no memory that a case took.
    importlib.import_module("torch")
    limits = {resource.RLIMIT_AS: _address_space() + MEMORY}
    if case.largest_file is not None:
        limits[resource.RLIMIT_FSIZE] = case.largest_file
    before = {limit: resource.getrlimit(limit) for limit in limits}
    timers = {
        signal.ITIMER_PROF: (signal.SIGPROF, case.seconds),
        signal.ITIMER_REAL: (signal.SIGALRM, IDLE * case.seconds),
    }
    handlers = {number: signal.signal(number, stop) for number, _ in timers.values()}
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, before[limit][1]))
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for limit, pair in before.items():
            resource.setrlimit(limit, pair)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
