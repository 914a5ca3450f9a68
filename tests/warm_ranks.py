"""Ranks forked from servers that have loaded torch, for tests whose subject is not how ranks start.

Importing torch and the executor takes a rank three seconds, ten times as long as most of what it is started for.
All else is the launcher's: its agent, environment, logs, signals and exit codes; it starts `rank_client` instead of
Python, and that has a server fork the rank. What starts ranks is tested with ranks that start themselves.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

NUM_SERVERS = 2
CLIENT = Path(__file__).with_name("rank_client.py")
PRELOADED = (
    "executor.run.session", "executor.trainer", "executor.run.reference", "torch._dynamo",
    "torch.distributed.checkpoint.state_dict", "torchao.float8", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama", "transformers.models.mixtral.modeling_mixtral",
)  # fmt: skip


@contextlib.contextmanager
def servers() -> Iterator[Path]:
    """The folder of the sockets on which the servers listen; they end with the block, or with this process."""
    from profiles.ranks.launcher import ALLOCATOR_ENVIRONMENT, HUGE_PAGES, THREAD_ENVIRONMENT

    # What a process reads as it starts, and a rank that is forked can no longer be given.
    environment = {**os.environ, **ALLOCATOR_ENVIRONMENT, **THREAD_ENVIRONMENT, "GLIBC_TUNABLES": HUGE_PAGES}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment.pop("PYTHONHASHSEED", None)
    with tempfile.TemporaryDirectory(prefix="ranks-") as name, contextlib.ExitStack() as ended:
        folder = Path(name)
        for number in range(NUM_SERVERS):
            # Who connects while a server loads waits for it.
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(folder / str(number)))
            listener.listen(64)
            log = ended.enter_context((folder / f"{number}.log").open("w+"))
            ended.enter_context(_server(listener, log, environment))
        yield folder


@contextlib.contextmanager
def _server(listener: socket.socket, log: TextIO, environment: dict[str, str]) -> Iterator[None]:
    number = listener.fileno()
    command = [sys.executable, "-P", "-m", "tests.warm_ranks", str(number)]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[number]
    )
    # Nobody else listens: where the server ends, who connects is told.
    listener.close()
    try:
        yield
    finally:
        process.communicate()
    log.seek(0)
    assert process.returncode == 0, log.read()


@contextlib.contextmanager
def starting_from(folder: Path) -> Iterator[None]:
    """While entered, the launcher's ranks are forked from the servers that listen in `folder`."""
    from profiles.ranks import launcher

    launch = launcher.elastic_launch

    def from_server(config: Any, entrypoint: str) -> Any:
        def run(*arguments: str) -> Any:
            return launch(config, entrypoint)("-I", "-S", str(CLIENT), str(folder), *arguments)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "elastic_launch", from_server)
        yield


class Server:
    """Forks a rank for each connection, tells it the rank's number and then its exit code."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.ranks: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()

    def serve(self) -> dict[str, Any] | None:
        """What a rank is to run, in the rank; None in the server, once its standard input is closed."""
        woken, waker = socket.socketpair()
        for end in (woken, waker):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(waker.fileno())
        for source in (self.listener, woken, sys.stdin):
            self.selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is sys.stdin:
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
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        request: dict[str, Any] = json.loads(connection.makefile().readline())
        rank = os.fork()
        if rank:
            self.ranks[rank] = connection
            connection.sendall(f"{rank}\n".encode())
            self.selector.register(connection, selectors.EVENT_READ, rank)
        else:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for other in (self.selector, self.listener, connection, *self.ranks.values()):
                other.close()
        for stream in streams:
            os.close(stream)
        return None if rank else request

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
    importlib.import_module(module).main()


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    asked = Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    if asked is not None:
        become(asked)
