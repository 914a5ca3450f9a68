"""Ranks forked from a process that has loaded torch: a rank that loads it itself takes seconds of a core to start.

The program that starts ranks has loaded all that they need when it has checked what they are to do. It forks a server
before it starts any thread; where torch's launcher then starts a rank, it starts a small `client`, for which the server
forks the rank. On CPU alone: CUDA does not survive a fork. Signals, logs and exit codes are as of ranks that start
themselves. Torch-free, as it is read before torch is loaded.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from profiles.machines.fingerprint import current_device_kind
from profiles.ranks.environment import allocator_environment, in_job
from profiles.ranks.leftovers import swept

CLIENT = Path(__file__).with_name("client.py")
SUFFIX = ".socket"
# What a socket's path leaves to the folder for temporary files, beside "/trainwright-ranks-12345678/0.socket".
MOST_FOLDER_BYTES = 70
# Which process was started again already: it is not once more where that was in vain, as /proc cannot be read.
RESTARTED_VARIABLE = "TRAINWRIGHT_RESTARTED"


def restart_for_ranks() -> None:
    """Start this program again as its ranks must be started, where they are to be forked from it.

    What the allocator is told, a process reads as it starts. Nothing where ranks start themselves, or where this is
    called within another program.
    """
    is_restarted = os.environ.pop(RESTARTED_VARIABLE, "") == str(os.getpid())
    device_kind = current_device_kind()
    if is_restarted or not _may_fork(device_kind) or _is_ready() or not _is_a_command():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    environment = os.environ | allocator_environment(device_kind) | {RESTARTED_VARIABLE: str(os.getpid())}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _short_folder() -> str | None:
    """Where sockets can be: their paths have at most 107 bytes, which a folder for temporary files may have used up."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= MOST_FOLDER_BYTES else "/tmp"


@contextlib.contextmanager
def rank_server(device_kind: str) -> Iterator[Path | None]:
    """The folder of a server that forks ranks from here while this is entered; None where they start themselves.

    Only of a process that has one thread: of others a fork may find locks that nobody will open.
    """
    if not _may_fork(device_kind) or not _is_ready() or len(os.listdir("/proc/self/task")) != 1:
        yield None
        return
    with (
        tempfile.TemporaryDirectory(prefix="trainwright-ranks-", dir=_short_folder()) as name,
        swept(Path(name)),
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(str(Path(name, f"0{SUFFIX}")))
        listener.listen(64)
        ended, alive = os.pipe()
        # Else what is still to be written would be so by every rank.
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if not process:
            os.close(alive)
            _serve_here(listener, ended)
        os.close(ended)
        # Nobody else listens: where the server ends, who connects is told.
        listener.close()
        try:
            yield Path(name)
        finally:
            os.close(alive)
            os.waitpid(process, 0)


def _serve_here(listener: socket.socket, ended: int) -> NoReturn:
    """Be the server, and in each process that it forks the rank: whatever happens, not what this process was before."""
    try:
        # Ctrl-C is for the launcher, which tells the ranks.
        os.setsid()
        gc.collect()
        gc.freeze()
        request = Server(listener, ended).serve()
        if request is not None:
            become(request)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        _leave(1)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End without what the program that was forked would do at its end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _may_fork(device_kind: str) -> bool:
    return sys.platform == "linux" and device_kind == "cpu" and not in_job()


def _is_ready() -> bool:
    """Whether this process was started with what its ranks must be."""
    try:
        words = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return {f"{name}={value}".encode() for name, value in allocator_environment("cpu").items()} <= set(words)


def _is_a_command() -> bool:
    """Whether this process is one of our commands, rather than something that has called it."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", "") or Path(getattr(main, "__file__", None) or "").name
    return name in ("executor.__main__", "execute", "trainwright")


class Server:
    """Forks a rank for each connection, tells it the rank's number and then its exit code; until `ended` is closed."""

    def __init__(self, listener: socket.socket, ended: int) -> None:
        self.listener, self.ended = listener, ended
        self.ranks: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()

    def serve(self) -> dict[str, Any] | None:
        """What a rank is to run, in the rank; None in the server, once it is told to end or who told it is gone."""
        woken, waker = socket.socketpair()
        for end in (woken, waker):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # What is sent to all processes of a job is for its ranks, which save first: the server ends with its program.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(waker.fileno())
        for source in (self.listener, woken, self.ended):
            self.selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj == self.ended:
                    for rank in self.ranks:
                        os.kill(rank, signal.SIGKILL)
                    return None
                if key.fileobj is self.listener:
                    request = self._fork(self.listener.accept()[0])
                    if request is not None:
                        return request
                elif key.fileobj is woken:
                    woken.recv(4096)
                    self._reap()
                elif key.data in self.ranks:
                    # Whoever asked for this rank is gone.
                    self.selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _fork(self, connection: socket.socket) -> dict[str, Any] | None:
        streams, line = list[int](), ""
        with contextlib.suppress(OSError):
            _, streams, _, _ = socket.recv_fds(connection, 1, 3)
            line = connection.makefile().readline()
        # Else whoever asked was killed while it did.
        rank = os.fork() if line.endswith("\n") else None
        if rank is None:
            connection.close()
        elif rank:
            self.ranks[rank] = connection
            with contextlib.suppress(OSError):
                connection.sendall(f"{rank}\n".encode())
            self.selector.register(connection, selectors.EVENT_READ, rank)
        else:
            signal.set_wakeup_fd(-1)
            # As in a process that has just started: a handler of the program's would wait for a collective to end.
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            for place, stream in enumerate(streams):
                os.dup2(stream, place)
            self.selector.close()
            for other in (self.listener, connection, *self.ranks.values()):
                other.close()
            os.close(self.ended)
        for stream in streams:
            os.close(stream)
        return json.loads(line) if rank == 0 else None

    def _reap(self) -> None:
        while self.ranks:
            rank, status = os.waitpid(-1, os.WNOHANG)
            if not rank:
                return
            with self.ranks.pop(rank) as connection:
                if connection in self.selector.get_map():
                    self.selector.unregister(connection)
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def become(request: dict[str, Any]) -> None:
    """Run in this process what Python would with these arguments, environment and folder."""
    from profiles.ranks.processes import LAUNCHER_VARIABLE

    safe_path, as_module, module, *arguments = request["arguments"]
    assert (safe_path, as_module) == ("-P", "-m")
    os.environ.clear()
    os.environ.update(request["environment"])
    # A rank ends with the process that started it.
    os.environ[LAUNCHER_VARIABLE] = str(os.getppid())
    os.chdir(request["folder"])
    wanted = os.environ["PYTHONPATH"].split(os.pathsep)
    sys.path[:] = [*wanted, *(path for path in sys.path if path not in wanted)]
    sys.argv[1:] = arguments
    _draw_anew()
    importlib.import_module(module).main()


def _draw_anew() -> None:
    """Let random numbers be those of a process that has just started, rather than what is left of another's."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
