"""A folder of checkpoints belongs to one run at a time: two would prune, and go on from, each other's."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from profiles.errors import EnvironmentFailure
from profiles.ranks.processes import birth

OWNER = ".owner"
UNFINISHED = ".step-*.part"
# Descriptors of the folders that this process owns. A record lock goes with the process, is not inherited by those that
# it forks, and reaches over a network's file system; but it would be given up if the file were opened and closed again.
_owned: dict[tuple[int, str], int] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Which process owns a folder; `born` tells it from a later one of the same number."""

    host: str
    process: int
    born: str
    since: str

    @property
    def is_gone(self) -> bool:
        """Whether it is known that the process has ended: one of another host may run."""
        return self.host == platform.node() and birth(self.process) != self.born


def own(folder: Path) -> None:
    """Take a folder until this process ends, however it ends, and remove what runs before it left half written.

    Raises: EnvironmentFailure where another run has it, or it cannot be written to.
    """
    key = (os.getpid(), os.path.realpath(folder))
    if key in _owned:
        return
    _owned[key] = _taken(folder)
    for part in folder.glob(UNFINISHED):
        shutil.rmtree(part, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Check, before anything is started, that no other run has a folder.

    Raises: EnvironmentFailure that names its process.
    """
    if (os.getpid(), os.path.realpath(folder)) not in _owned and (folder / OWNER).exists():
        os.close(_taken(folder))


@contextlib.contextmanager
def borrowed(folder: Path) -> Iterator[bool]:
    """While entered, this process owns a folder where nobody else does, and says whether it does."""
    key = (os.getpid(), os.path.realpath(folder))
    if key in _owned:
        yield True
        return
    try:
        descriptor = _taken(folder)
    except EnvironmentFailure:
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def _taken(folder: Path) -> int:
    """The descriptor that holds the lock of a folder from now on."""
    path = folder / OWNER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise EnvironmentFailure(f"cannot write {path}: {error.strerror or error}; nothing was started") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_theirs = False
    except OSError as error:
        # Where the file system has no locks, what stands in the file counts.
        is_theirs = error.errno in (errno.EACCES, errno.EAGAIN) or not _is_stale(descriptor)
    if is_theirs:
        refusal = _refusal(folder, _read(descriptor))
        os.close(descriptor)
        raise refusal
    since = datetime.now(UTC).isoformat(timespec="seconds")
    own_process = os.getpid()
    owner = Owner(host=platform.node(), process=own_process, born=birth(own_process), since=since)
    with contextlib.suppress(OSError):
        # A full disk is told where something is saved.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(owner)).encode(), 0)
    return descriptor


def _is_stale(descriptor: int) -> bool:
    owner = _read(descriptor)
    return owner is None or owner.is_gone


def _read(descriptor: int) -> Owner | None:
    with contextlib.suppress(ValueError, TypeError, OSError):
        return Owner(**json.loads(os.pread(descriptor, 4096, 0)))
    return None


def _refusal(folder: Path, owner: Owner | None) -> EnvironmentFailure:
    who = "" if owner is None else f" (process {owner.process} on {owner.host}, since {owner.since})"
    return EnvironmentFailure(
        f"{folder} belongs to another run that is still going{who}: wait for its end, or give another folder; if "
        f"that run is known to be gone, delete {folder / OWNER}"
    )
