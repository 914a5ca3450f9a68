"""Inside one process of a job: joining the process group, pinning, reporting progress, and leaving a word on failure.

One rank is one process, one device and (on CPU) one computing thread on its own core: two such threads per core, or
ranks that wander between cores, make times random. The threads that move messages stay free to run on any core: bound
to the same one, they would wait for a scheduler tick of 4 ms behind the computing thread in every collective.
A failure is written to a file, since the process itself may be gone when it is read.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import functools
import importlib
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from profiles.errors import EnvironmentFailure, LostPeer, RankFailure, TrainwrightError
from profiles.files import write_text
from profiles.machines.cores import stay_on, usable_cores
from profiles.ranks.devices import BACKENDS, make_ready, own_device
from profiles.ranks.heartbeats import Heart, words
from profiles.ranks.processes import LAUNCHER_VARIABLE
from profiles.ranks.stores import join_store, life_signs

FOLDER_VARIABLE = "TRAINWRIGHT_JOB_FOLDER"
PROGRESS_FILE = "progress.jsonl"
# How long a rank waits for another in a collective.
TIMEOUT_SECONDS = 600.0
# What the libraries that carry messages call themselves, or say of a wait.
OF_MESSAGES = re.compile(r"gloo|nccl|c10d|operation timed out!|timed out waiting", re.IGNORECASE)
_hearts: list[Heart] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """This process's place in the job."""

    rank: int
    local_rank: int
    num_ranks: int
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a rank ended: `error` is the exception's class, `message` its first line, `details` those of our errors."""

    rank: int
    error: str
    message: str
    is_ours: bool
    is_lost_peer: bool
    details: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Something that rank 0 tells whoever watches: how far it is, what it does, or a line for the log.

    `values` are what the line says, by name; a `notice` is for everybody to see, and is kept with the result.
    """

    fraction: float
    text: str
    line: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    notice: str = ""


@contextlib.contextmanager
def join_group(device_kind: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Rank]:
    """Join the job's process group (gloo on cpu, nccl on cuda) and leave it at the end.

    Raises: EnvironmentFailure where the group cannot be formed.
    """
    yield enter_group(device_kind, timeout_seconds)
    # Only after success: leaving a group whose other ranks are gone or stuck would wait for them.
    leave_group()


def enter_group(device_kind: str, timeout_seconds: float = TIMEOUT_SECONDS, device: torch.device | None = None) -> Rank:
    """Join the job's process group (gloo on cpu, nccl on cuda), which `leave_group` ends.

    On `device`; else on the GPU of this rank's number among those of its host that it sees.

    Raises: EnvironmentFailure where the group cannot be formed.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = device or own_device(device_kind, local_rank)
    if device.type == "cuda":
        make_ready(device)
    else:
        torch.set_num_threads(1)
    try:
        dist.init_process_group(
            BACKENDS[device.type],
            timeout=datetime.timedelta(seconds=timeout_seconds),
            device_id=device if device.type == "cuda" else None,
            **join_store(timeout_seconds),
        )
        board = life_signs(timeout_seconds)
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise EnvironmentFailure(f"the ranks cannot form a process group: {_first_line(error)}") from error
    _hearts.append(Heart(board, dist.get_rank(), dist.get_world_size(), timeout_seconds, _give_up))
    # Before this thread is pinned: the heart's should run on any core.
    _hearts[-1].start()
    if device.type == "cpu":
        pin(local_rank)
    return Rank(rank=dist.get_rank(), local_rank=local_rank, num_ranks=dist.get_world_size(), device=device)


def leave_group() -> None:
    """Leave the job's process group when all ranks have come here."""
    dist.barrier()
    while _hearts:
        _hearts.pop().stop()
    dist.destroy_process_group()


def heart() -> Heart | None:
    """This rank's signs of life, None where it has joined no group of ours."""
    return _hearts[-1] if _hearts else None


def _give_up(own: Heart, seconds: Mapping[int, float]) -> None:
    """End this rank, wherever its program waits, as others give no sign of life."""
    error = RankFailure(words(own, seconds))
    if LAUNCHER_VARIABLE in os.environ:
        _leave_word(Path(os.environ[FOLDER_VARIABLE]), own.rank, error)
        os._exit(1)
    with contextlib.suppress(OSError):
        print(f"error: {error}", file=sys.__stderr__, flush=True)
    os._exit(error.exit_code)


def _leave_word(folder: Path, rank: int, error: BaseException) -> None:
    """Leave the Failure of a rank that ends, whole or not at all: a full disk keeps none from ending."""
    with contextlib.suppress(EnvironmentFailure):
        write_text(failure_path(folder, rank), json.dumps(asdict(describe(rank, error))))


@functools.cache
def own_cores() -> tuple[int, ...]:
    """The cores this process was given, as they were when first asked for, before any pinning."""
    return usable_cores()


def pin(local_rank: int) -> None:
    """Keep the calling thread on one core of the process's; ranks beyond the number of cores share them evenly."""
    cores = own_cores()
    stay_on({cores[local_rank % len(cores)]})


@contextlib.contextmanager
def unpinned() -> Iterator[None]:
    """While entered, threads that start (those of a new process group) may run on any core of the process's."""
    cores, pinned = own_cores(), usable_cores()
    stay_on(cores)
    try:
        yield
    finally:
        stay_on(pinned)


def job_store() -> Any:
    """The key-value store that the ranks met in; torch has no public way to it."""
    return dist.distributed_c10d._get_default_store()


def wait_for_first(what: str, timeout_seconds: float) -> None:
    """Wait until rank 0 comes here too, longer than a collective would; each `what` once in a job."""
    if dist.get_rank() == 0:
        tell_others(what, "1")
    else:
        from_first(what, timeout_seconds)


def tell_others(what: str, words: str) -> None:
    """Let the other ranks know what came of something that rank 0 does alone."""
    job_store().set(f"trainwright/done/{what}", words)


def from_first(what: str, timeout_seconds: float) -> str:
    """What rank 0 tells of it, once it does."""
    key = f"trainwright/done/{what}"
    job_store().wait([key], datetime.timedelta(seconds=timeout_seconds))
    words: bytes = job_store().get(key)
    return words.decode()


def report(fraction: float, text: str, line: str = "", values: dict[str, Any] | None = None, notice: str = "") -> None:
    """Tell the watching process how far the job is; of rank 0 only, the others' reports are dropped."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and os.environ.get("RANK", "0") == "0":
        with Path(folder, PROGRESS_FILE).open("a", encoding="utf-8") as stream:
            said = Report(fraction=fraction, text=text, line=line, values=values or {}, notice=notice)
            stream.write(json.dumps(asdict(said)) + "\n")


def call_entry(entry: str, payload: Any) -> Any:
    """Call `package.module:function` on the payload."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)(payload)


def describe(rank: int, error: BaseException) -> Failure:
    """What is said of an exception that ended `rank`."""
    error = _first_cause(error)
    details = error.details if isinstance(error, TrainwrightError) else ""
    return Failure(
        rank=rank,
        error=type(error).__name__,
        message=_first_line(error),
        is_ours=isinstance(error, TrainwrightError),
        is_lost_peer=is_lost_peer(error),
        details=details,
    )


def is_lost_peer(error: BaseException) -> bool:
    """Whether the error says no more than that another rank is gone, which has its own account of why."""
    cause = _first_cause(error)
    return isinstance(cause, LostPeer) or (is_of_messages(error) and not isinstance(cause, TrainwrightError))


def is_of_messages(error: BaseException) -> bool:
    """Whether an error is of what sends messages between ranks; a user's own code may speak of timeouts as well."""
    error = _first_cause(error)
    kinds = (dist.DistError, ConnectionError, TimeoutError)
    return isinstance(error, kinds) or OF_MESSAGES.search(_first_line(error)) is not None


def _first_cause(error: BaseException) -> BaseException:
    """The error that the libraries wrapped in what they were doing at the time; the first that is one of ours."""
    while error.__cause__ is not None and not isinstance(error, TrainwrightError):
        error = error.__cause__
    return error


def failure_path(folder: Path, rank: int) -> Path:
    """Where `rank` leaves its Failure."""
    return folder / f"failure-{rank}.json"


def result_path(folder: Path, rank: int) -> Path:
    """Where `rank` leaves what its entry returned; its presence says that the rank came to its end."""
    return folder / f"result-{rank}.json"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else ""


def main() -> None:
    """Run one rank, which `profiles.ranks.start` has started: arguments are the entry, the payload's file, the folder.

    What a crash in a library stood in goes to the log.
    """
    faulthandler.enable(2)
    # An interrupt ends a rank wherever it waits, in a collective too; the launcher says so.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    entry, payload_file, folder_name = sys.argv[1:]
    folder, rank = Path(folder_name), int(os.environ["RANK"])

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # The log first: the launcher may end this process as soon as it knows of any failure.
        # Not to sys.stderr, which torch.distributed's own hook, around this one, has replaced by a buffer.
        with contextlib.suppress(OSError):
            traceback.print_exception(kind, error, trace, file=sys.__stderr__)
        _leave_word(folder, rank, error)
        if isinstance(error, RuntimeError):
            # A peer's death shows here first; its own account is better, so let the launcher see that one as well.
            time.sleep(0.05)
        # The interpreter's own exit would wait for the threads of a broken process group.
        os._exit(1)

    sys.excepthook = end
    # Of an attempt before this one.
    for path in (failure_path(folder, rank), result_path(folder, rank)):
        path.unlink(missing_ok=True)
    value = call_entry(entry, json.loads(Path(payload_file).read_text(encoding="utf-8")))
    path = result_path(folder, rank)
    path.with_suffix(".part").write_text(json.dumps(value if rank == 0 else None), encoding="utf-8")
    path.with_suffix(".part").replace(path)
