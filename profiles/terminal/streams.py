"""Standard output and error as they may be found: closed, full, unable to encode a character, or no longer read."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from profiles.errors import EnvironmentFailure


class Stream:
    """A standard stream that whoever reads it may leave at any time: what follows is dropped, and the work goes on.

    Raises: from writing, EnvironmentFailure where the stream `is_needed` and cannot be written to, as on a full disk.
    """

    def __init__(self, stream: TextIO, is_needed: bool) -> None:
        self._stream, self._is_needed = stream, is_needed

    def write(self, text: str) -> int:
        """Write `text`; how many characters that were."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Hand over what was written so far."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Callable[..., object], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError as error:
            # What is still in the buffer would fail again at the interpreter's end.
            with contextlib.suppress(io.UnsupportedOperation):
                _discard(self._stream.fileno())
            if self._is_needed and not isinstance(error, BrokenPipeError):
                raise EnvironmentFailure(f"cannot write to standard output: {error.strerror or error}") from error


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """While entered, `sys.stdout` and `sys.stderr` are Streams, and what they cannot encode is replaced.

    Where one is closed, it is one that keeps nothing: what is opened next would be taken for it.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, Stream(_opened(sys.stdout, 1), is_needed=True))
    sys.stderr = cast(TextIO, Stream(_opened(sys.stderr, 2), is_needed=False))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _opened(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:
        _discard(descriptor)
        return open(descriptor, "w", encoding="utf-8", closefd=False)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream


def _discard(descriptor: int) -> None:
    """Make `descriptor` one that takes everything and keeps nothing."""
    sink = os.open(os.devnull, os.O_WRONLY)
    if sink != descriptor:
        os.dup2(sink, descriptor)
        os.close(sink)
