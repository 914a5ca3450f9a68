"""What is written for the user: files whole or not at all; devices, pipes and our own output as they come."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from profiles.errors import EnvironmentFailure

ENCODING = "utf-8"
# Names of files that the file system gave us may hold bytes that are no text; they are written as escapes.
ENCODING_ERRORS = "backslashreplace"
# Of a temporary file's name, beside what makes it its own: a name may have 255 bytes, a character four.
LONGEST_STEM = 50


def ensure_writable(path: Path) -> None:
    """Try that `path` can be written, before hours are spent on what shall go there; its folder is made.

    Raises: EnvironmentFailure where it cannot.
    """
    with _told(path, "nothing was started"):
        if _is_written_through(path):
            if not os.access(path, os.W_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            _try_folder(Path(os.path.realpath(path)).parent)


def ensure_folder(folder: Path) -> None:
    """Make `folder`, and try that files can be made in it, before hours are spent on what shall go there.

    Raises: EnvironmentFailure where they cannot.
    """
    with _told(folder, "nothing was started"):
        _try_folder(folder)


def _try_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all.

    Raises: EnvironmentFailure where the disk is full, or the place cannot be written.
    """
    with replacing(path) as stream:
        stream.write(text)


@contextlib.contextmanager
def replacing(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A stream whose content is the file `path` once the block has ended well; otherwise nothing is changed.

    The content goes to a temporary file in the same folder, which is renamed. Links are followed. What is no file (a
    device, a pipe), or is our own output, is written to as it is.
    Raises: EnvironmentFailure where the disk is full, or the place cannot be written.
    """
    with _told(path, "nothing was written"):
        is_written_through = _is_written_through(path)
    if is_written_through:
        with _told(path, "the file is incomplete"), _text_or_bytes(_opened(path), binary) as stream:
            yield stream
        return
    with _told(path, "nothing was written"):
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name[:LONGEST_STEM]}.{os.urandom(4).hex()}")
        try:
            # Made with the permissions that any new file gets; a file that is replaced keeps its own.
            with _text_or_bytes(temporary.open("xb"), binary) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                if target.exists():
                    os.fchmod(stream.fileno(), stat.S_IMODE(target.stat().st_mode))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(path: Path, outcome: str) -> Iterator[None]:
    """Turn what the system refuses into a sentence, but for a reader that has left: that is no error."""
    try:
        yield
    except BrokenPipeError:
        return
    except OSError as error:
        raise EnvironmentFailure(f"cannot write {path}: {error.strerror or error}; {outcome}") from error


def _is_written_through(path: Path) -> bool:
    """Whether `path` is there and no file of its own: a device, a pipe, or what our output goes to already.

    Raises: OSError for a folder, and for links that lead in a circle.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return not stat.S_ISREG(found.st_mode) or _own_output(found) is not None


def _own_output(found: os.stat_result) -> int | None:
    """The descriptor of our standard output or error where that is the file `found`."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
    return None


def _opened(path: Path) -> IO[bytes]:
    """`path` opened to be written as it is, behind what our output has said so far."""
    own = _own_output(path.stat())
    if own is None:
        return os.fdopen(os.open(path, os.O_WRONLY), "wb")
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    return os.fdopen(os.dup(own), "wb")


def _text_or_bytes(stream: IO[bytes], binary: bool) -> IO[Any]:
    return stream if binary else io.TextIOWrapper(stream, ENCODING, ENCODING_ERRORS, newline="")
