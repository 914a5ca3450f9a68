"""Code that is not this program's, a user's module or transformers: whatever it raises is told in one sentence.

While it runs, standard output is standard error: results alone go to the former. Torch-free.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import InputError, TrainwrightError

if TYPE_CHECKING:
    from profiles.models.profile import WorkloadSpec

OPTION = "--traceback"
PACKAGES = ("profiles", "planner", "executor", "reports")
SITE_FOLDERS = ("site-packages", "dist-packages")
# Names of exceptions, and types as Python prints them.
PYTHON_WORDS = re.compile(r"\b[A-Z]\w*(Error|Exception): |<class '[^']*'>,? ?")
LONGEST_CAUSE = 100
# What the libraries say where there is no memory left.
EXHAUSTED = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)


@contextlib.contextmanager
def _output_apart() -> Iterator[None]:
    """While entered, what is written to standard output goes to standard error, by its descriptor as well."""
    _hand_over()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        kept = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            _hand_over()
            os.dup2(kept, 1)
            os.close(kept)


def _hand_over() -> None:
    """Write out what Python still holds for standard output: it goes where that leads now."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


@contextlib.contextmanager
def foreign_code(spec: WorkloadSpec, failing: str) -> Iterator[None]:
    """Run code of the model's author; `failing` is how the sentence begins where it does, as "cannot import a.b:c".

    Raises: InputError in place of whatever it raises, an exit included; MemoryError where no memory is left.
    """
    with _output_apart():
        try:
            yield
        except BaseException as error:
            if _is_no_failure(error):
                raise
            if _is_exhausted(error):
                raise MemoryError(str(error)) from error
            raise _failure(spec, failing, error) from error


@contextlib.contextmanager
def calling_foreign_code(spec: WorkloadSpec, failing: str) -> Iterator[None]:
    """Run this program's own code, which calls a user's module: only what comes out of the user's lines is theirs.

    Raises: InputError in place of that, but for what a peer that is gone left behind.
    """
    if spec.kind != "module":
        yield
        return
    with _output_apart():
        try:
            yield
        except BaseException as error:
            # Here, because whoever comes here has loaded torch, and this module needs none.
            from profiles.ranks.rank import is_lost_peer

            passes = _is_no_failure(error) or _is_exhausted(error) or is_lost_peer(error)
            if _place(spec, error) and not passes:
                raise _failure(spec, failing, error) from error
            raise


def _is_no_failure(error: BaseException) -> bool:
    """Whether the error is none of that code's: a sentence already, or a stop from outside."""
    if isinstance(error, TrainwrightError | KeyboardInterrupt):
        return True
    if isinstance(error, SystemExit):
        # Signals become exits in a line of this program.
        (*_, (last, _)) = traceback.walk_tb(error.__traceback__)
        return _is_ours(last.f_code.co_filename)
    return False


def _is_exhausted(error: BaseException) -> bool:
    """Whether no memory is left, which commands and ranks have a sentence for."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and EXHAUSTED.search(str(error)) is not None
    )


def _failure(spec: WorkloadSpec, failing: str, error: BaseException) -> InputError:
    place, details = _place(spec, error), _traceback(error)
    cause = _cause(error)
    if spec.kind != "module":
        # transformers' errors tell classes and types of its own, at length.
        cause = PYTHON_WORDS.sub("", cause)
    cause = cause if len(cause) <= LONGEST_CAUSE else f"{cause[:LONGEST_CAUSE]}..."
    sentence = f"{failing}: {cause}{f' ({place})' if place else ''}"
    found = InputError(f"{sentence}; {OPTION} shows the full traceback" if details else sentence)
    found.details = details
    return found


def _cause(error: BaseException) -> str:
    """The error in one line, as Python would say it."""
    if isinstance(error, SystemExit):
        return f"it ends the program, sys.exit({error.code!r})"
    # A syntax error's own words name file and line once more.
    words = error.msg if isinstance(error, SyntaxError) else traceback.TracebackException.from_exception(error)
    lines = [line.strip() for line in str(words).splitlines() if line.strip()]
    # A heading says nothing by itself.
    last = next((number for number, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return f"{type(error).__name__}: {' '.join(lines[: last + 1])}" if lines else type(error).__name__


def _place(spec: WorkloadSpec, error: BaseException) -> str:
    """File and line of the user's that an error comes from, or one that caused it; "" where it has no such line."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    places = [
        f"{frame.f_code.co_filename}, line {line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_users(spec, frame.f_code.co_filename, str(frame.f_globals.get("__name__", "")))
    ]
    if places:
        return places[-1]
    return _place(spec, error.__cause__) if error.__cause__ is not None else ""


def _is_users(spec: WorkloadSpec, file: str, module: str) -> bool:
    """Whether a line is of the user's module, or of others that lie beside it and are not installed."""
    if spec.module and module.partition(".")[0] == spec.module.partition(".")[0]:
        return True
    return not _is_hidden(file) and not any(folder in Path(file).parts for folder in SITE_FOLDERS)


def _is_ours(file: str) -> bool:
    program = Path(__file__).resolve().parents[2]
    return any(Path(file).resolve().is_relative_to(program / package) for package in PACKAGES)


def _is_hidden(file: str) -> bool:
    """Whether a line is of this program, of torch, or of Python itself, none of which tells a user anything."""
    if file.startswith("<") or _is_ours(file):
        return True
    parts = Path(file).parts
    for folder in SITE_FOLDERS:
        if folder in parts:
            return parts[parts.index(folder) + 1] == "torch"
    return Path(file).resolve().is_relative_to(Path(sysconfig.get_path("stdlib")).resolve())


def _traceback(error: BaseException) -> str:
    """The error as Python prints it, without the lines that tell a user nothing; "" where none are left."""
    whole = traceback.TracebackException.from_exception(error)
    told: traceback.TracebackException | None = whole
    is_known = isinstance(error, SyntaxError)
    while told is not None:
        told.stack[:] = [frame for frame in told.stack if not _is_hidden(frame.filename)]
        is_known = is_known or bool(told.stack)
        told = told.__cause__ or told.__context__
    return "".join(whole.format()).rstrip() if is_known else ""
