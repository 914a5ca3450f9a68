"""Start the ranks of a job on this machine through torchrun's own launcher, or join the job that is already there.

Profiling and executing share this one launch, so that both see the same conditions: one thread per rank, a core of its
own, and memory that the allocator keeps. The first cause of a failure becomes one sentence; no process is left behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from profiles.errors import EnvironmentFailure, Stopped
from profiles.ranks.causes import Ended, first_cause
from profiles.ranks.environment import (
    LOOPBACK,
    NO_AGENT_STORE,
    allocator_environment,
    in_job,
    is_main_process,
    join_slurm,
)
from profiles.ranks.exhausted import Counted, counted
from profiles.ranks.forked import CLIENT
from profiles.ranks.heartbeats import FolderBoard, last_steps
from profiles.ranks.leftovers import Reaper, swept
from profiles.ranks.processes import LAUNCHER_VARIABLE
from profiles.ranks.rank import FOLDER_VARIABLE, PROGRESS_FILE, Report, call_entry, result_path
from profiles.ranks.signals import STOPPING
from profiles.ranks.stores import one_host_environment, stay_on_this_host

POLL_SECONDS = 0.1


def launch(
    entry: str,
    payload: Any,
    num_ranks: int,
    device_kind: str,
    *,
    on_report: Callable[[Report], None] | None = None,
    max_restarts: int = 0,
    server: Path | None = None,
) -> Any:
    """Run `entry` ("package.module:function") on the JSON-able `payload` in `num_ranks` processes; rank 0's return.

    Under torchrun or Slurm this process is one of the ranks: it runs the entry itself, and other ranks get None.
    Where a rank dies, all are started again up to `max_restarts` times; the entry asks
    `profiles.ranks.stores.num_restarts`.
    Where there is a `server`, of `profiles.ranks.forked.rank_server`, it forks them.
    `on_report` is called, on another thread, with what rank 0 passes to `profiles.ranks.rank.report`.

    Raises: RankFailure for a rank that dies; the error itself where it is one of ours; EnvironmentFailure where ranks
    cannot start; with all ranks gone, KeyboardInterrupt on Ctrl-C and on SIGTERM SystemExit, or Stopped where the entry
    saved.
    """
    folder = Path(tempfile.mkdtemp(prefix="trainwright-"))
    try:
        with swept(folder), _environment({FOLDER_VARIABLE: str(folder)}), _watched(folder, on_report):
            if in_job():
                return _join(entry, payload, num_ranks)
            return _spawn(entry, payload, num_ranks, device_kind, folder, max_restarts, server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _join(entry: str, payload: Any, num_ranks: int) -> Any:
    join_slurm()
    present = int(os.environ["WORLD_SIZE"])
    if present != num_ranks:
        raise EnvironmentFailure(f"the job has {present} processes, but {num_ranks} are needed: start {num_ranks}")
    stay_on_this_host()
    value = call_entry(entry, payload)
    return value if is_main_process() else None


def _spawn(
    entry: str,
    payload: Any,
    num_ranks: int,
    device_kind: str,
    folder: Path,
    max_restarts: int,
    server: Path | None,
) -> Any:
    payload_file = folder / "payload.json"
    payload_file.write_text(json.dumps(payload), encoding="utf-8")
    through = () if server is None else ("-I", "-S", str(CLIENT), str(server))
    arguments = (*through, "-P", "-m", "profiles.ranks.start", entry, str(payload_file), str(folder))
    reaper, memory = Reaper(folder), counted()
    try:
        with _environment(_rank_environment(device_kind, folder)), _quiet(), _signals_given_back(), reaper.watching():
            elastic_launch(_config(num_ranks, folder, max_restarts), entrypoint=sys.executable)(*arguments)
    except ChildFailedError as error:
        # Codes of the ranks that were seen to fail; those the launcher stopped afterwards carry its SIGTERM.
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        raise first_cause(_ended(reaper, folder, num_ranks, memory, codes)) from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        failure = first_cause(_ended(reaper, folder, num_ranks, memory))
        if isinstance(failure, Stopped):
            raise failure from None
        raise SystemExit(128 + error.sigval) from None
    except (RendezvousError, torch.distributed.DistError) as error:
        raise EnvironmentFailure(f"the ranks cannot start: {str(error).splitlines()[0]}") from error
    if not all(result_path(folder, rank).exists() for rank in range(num_ranks)):
        raise first_cause(_ended(reaper, folder, num_ranks, memory))
    return json.loads(result_path(folder, 0).read_text(encoding="utf-8"))


def _ended(reaper: Reaper, folder: Path, num_ranks: int, memory: Counted, codes: dict[int, int] | None = None) -> Ended:
    board = FolderBoard(folder, reaper.last_attempt())
    return Ended(
        folder=folder,
        num_ranks=num_ranks,
        codes=codes or {},
        killed=frozenset(reaper.ended_by_launcher()),
        memory_before=memory,
        steps=last_steps(board, num_ranks),
    )


def _config(num_ranks: int, folder: Path, max_restarts: int) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        # The launcher meets nobody but itself: in a file, where its other kind of store would listen on the network.
        rdzv_backend="c10d",
        rdzv_endpoint=str(folder / "rendezvous"),
        rdzv_configs={"store_type": "file"},
        local_addr=LOOPBACK,
        max_restarts=max_restarts,
        monitor_interval=POLL_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder), redirects=Std.ALL),
    )


def _rank_environment(device_kind: str, folder: Path) -> dict[str, str]:
    return {
        # The ranks import what this process can import, whatever folder they stand in.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        LAUNCHER_VARIABLE: str(os.getpid()),
        **allocator_environment(device_kind),
        **one_host_environment(folder),
        NO_AGENT_STORE: "1",
    }


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for the ranks (they inherit this process's), put back afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signals_given_back() -> Iterator[None]:
    """Put this process's signal handlers back, which the launcher takes for good."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *STOPPING)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the launcher's log: what it says of a failure, the error says in one sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _watched(folder: Path, on_report: Callable[[Report], None] | None) -> Iterator[None]:
    """Pass on rank 0's reports from a thread of their own, since the launcher blocks this one."""
    if on_report is None:
        yield
        return
    over = threading.Event()

    def follow() -> None:
        position, path = 0, folder / PROGRESS_FILE
        while True:
            last = over.is_set()
            new = _read_from(path, position)
            whole = new[: new.rfind(b"\n") + 1]
            position += len(whole)
            for line in whole.splitlines():
                on_report(Report(**json.loads(line)))
            if last:
                return
            over.wait(POLL_SECONDS)

    watcher = threading.Thread(target=follow, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _read_from(path: Path, position: int) -> bytes:
    """What a file that grows has from there on; nothing where it is not there yet."""
    if not path.exists():
        return b""
    with path.open("rb") as stream:
        stream.seek(position)
        return stream.read()
