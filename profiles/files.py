"""What is written for the user: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from profiles.errors import EnvironmentFailure


def ensure_writable(path: Path) -> None:
    """Try that a file can be made beside `path`, before hours are spent on what shall go there.

    Raises: EnvironmentFailure where the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise EnvironmentFailure(f"cannot write {path}: {error.strerror or error}; nothing was started") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all (temporary file in the same folder, then rename)."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise EnvironmentFailure(f"cannot write {path}: {error.strerror or error}; nothing was written") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
