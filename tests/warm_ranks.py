"""Ranks forked from servers that have loaded torch, for tests whose subject is not how ranks start.

Importing torch and the executor takes a rank three seconds, ten times as long as most of what it is started for.
All else is the launcher's: its agent, environment, logs, signals and exit codes (see profiles/ranks/forked.py, which
forks ranks so from one command; these servers outlive many). What starts ranks is tested with ranks that start
themselves.
"""

import contextlib
import gc
import importlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from profiles.ranks.environment import allocator_environment
from profiles.ranks.forked import CLIENT, SUFFIX, Server, become

NUM_SERVERS = 2
PRELOADED = (
    "executor.run.session", "executor.trainer", "executor.run.reference", "torch._dynamo",
    "torch.distributed.checkpoint.state_dict", "torchao.float8", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama", "transformers.models.mixtral.modeling_mixtral",
)  # fmt: skip


@contextlib.contextmanager
def servers() -> Iterator[Path]:
    """The folder of the sockets on which the servers listen; they end with the block, or with this process."""
    # What a process reads as it starts, and a rank that is forked can no longer be given.
    environment = os.environ | allocator_environment("cpu")
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment.pop("PYTHONHASHSEED", None)
    with tempfile.TemporaryDirectory(prefix="ranks-") as name, contextlib.ExitStack() as ended:
        folder = Path(name)
        for number in range(NUM_SERVERS):
            # Who connects while a server loads waits for it.
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(folder / f"{number}{SUFFIX}"))
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


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    asked = Server(socket.socket(fileno=int(sys.argv[1])), sys.stdin.fileno()).serve()
    if asked is not None:
        become(asked)
