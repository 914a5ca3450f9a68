"""One case of the trial: a command line, the files it finds, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# A file's text or bytes, or what makes it at a path.
Content = str | bytes | Callable[[Path], object]
Stream = Literal["kept", "full", "closed", "gone", "ascii"]
GOOD, BAD_INPUT, NO_PLAN, TOLERANCE, ENVIRONMENT, INTERRUPTED, TERMINATED = 0, 2, 3, 4, 5, 130, 143
ACCEPTED_OR_REFUSED = (GOOD, BAD_INPUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command did. `escaped` is an exception that reached the top, `started` that the work itself began."""

    code: int
    out: str
    err: str
    escaped: str = ""
    started: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command, run in an empty folder that has `files`, and what must come of it.

    `code` is the exit code or those that are right, `words` a pattern that the sentence must contain (white space as
    one blank, upper and lower case alike). `stdout` and `stderr` are what these are connected to. `seconds` of
    computing are the most that it may take, `largest_file` bytes the most that a file may have, as on a disk that is
    full. `alone` runs it in a process of its own, with `memory` bytes of address space, which `signal` ends after so
    many seconds or after a line with the word `signal_at`. `beyond_us` says why a case cannot end as it should.
    `quotes_exceptions`: the user's own exceptions may be named. `leaves` are files that may stay after a failure;
    `after` looks at the folder and the outcome.
    """

    name: str
    command: Literal["plan", "profile", "execute", "compare"]
    arguments: Sequence[str]
    files: Mapping[str, Content] = field(default_factory=dict)
    code: int | Sequence[int] = BAD_INPUT
    words: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    stdout: Stream = "kept"
    stderr: Stream = "kept"
    largest_file: int | None = None
    alone: bool = False
    memory: int | None = None
    seconds: float = 60.0
    signal: int | None = None
    signal_after: float = 0.0
    signal_at: str = ""
    slow: bool = False
    beyond_us: str = ""
    quotes_exceptions: bool = False
    leaves: Sequence[str] = ()
    after: Callable[[Path, Outcome], object] | None = None

    @property
    def codes(self) -> tuple[int, ...]:
        """The exit codes that are right."""
        return (self.code,) if isinstance(self.code, int) else tuple(self.code)
