"""A job's nodes before it starts, in seconds: addresses, versions, files, and whether they reach one another.

`python -m profiles.ranks.preflight FILE...` as one process on each node, which srun or torchrun starts; the FILEs must
be the same on all of them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from profiles.errors import EnvironmentFailure, TrainwrightError
from profiles.ranks.environment import in_job, join_slurm

# A node that does not come in so many seconds is one that would not come.
TIMEOUT_SECONDS = 30.0
# Of the message that is sent round, and how often.
MESSAGE_BYTES, NUM_MESSAGES = 4 * 2**20, 5


def facts(paths: list[str]) -> dict[str, str]:
    """What must be the same on all nodes.

    Raises: EnvironmentFailure where a file cannot be read here.
    """
    found = {"python": platform.python_version(), "torch": version("torch")}
    try:
        found["trainwright"] = version("trainwright")
    except PackageNotFoundError:
        found["trainwright"] = "a source tree"
    for path in paths:
        try:
            found[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
        except OSError as error:
            raise EnvironmentFailure(
                f"{node()} cannot read {path}: {error.strerror}; put it where all nodes can read it"
            ) from error
    return found


def differences(everyone: dict[str, dict[str, str]]) -> str:
    """What differs between nodes, in a sentence; "" where nothing does."""
    for what in next(iter(everyone.values())):
        holders: dict[str, list[str]] = {}
        for name, own in everyone.items():
            holders.setdefault(own.get(what, "missing"), []).append(name)
        if len(holders) > 1:
            words = " and ".join(f"{value} on {_few(names)}" for value, names in holders.items())
            return f"{what} is {words}: make them the same"
    return ""


def node() -> str:
    """What this node is called: by Slurm, else by itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check(paths: list[str]) -> str:
    """Check this job's nodes together; what was found, in a line, on the first one and "" on others.

    Raises: EnvironmentFailure.
    """
    own = facts(paths)
    if not in_job():
        raise EnvironmentFailure("the preflight is one process on each node of a job: start it with srun or torchrun")
    join_slurm()
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    # Not at the top: an address that does not resolve is told before torch is loaded.
    import torch
    import torch.distributed as dist

    from profiles.ranks.rank import join_group

    with _naming(where), join_group("cpu", TIMEOUT_SECONDS) as rank:
        everyone: list[Any] = [None] * rank.num_ranks
        dist.all_gather_object(everyone, (node(), own))
        if said := differences({f"{name} ({index})": each for index, (name, each) in enumerate(everyone)}):
            raise EnvironmentFailure(said)
        seconds = _seconds_of_a_message(torch.zeros(MESSAGE_BYTES // 4), dist.all_reduce)
        if rank.rank:
            return ""
        words = ", ".join(f"{name} {value}" for name, value in own.items() if name not in paths)
        link = f", which sum {MESSAGE_BYTES >> 20} MiB in {seconds * 1e3:.3g} ms" if rank.num_ranks > 1 else ""
        return f"preflight: {rank.num_ranks} nodes meet at {where}{link}; {words}"


class _naming:
    """While entered, errors of meeting say where the nodes were to meet, and which one is here."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EnvironmentFailure) and "form a process group" in str(error):
            raise EnvironmentFailure(
                f"{node()} cannot reach the others at {self.where} in {TIMEOUT_SECONDS:.0f} s: let nodes reach that "
                "port, or set MASTER_ADDR and GLOO_SOCKET_IFNAME to a network that they share"
            ) from error


def _seconds_of_a_message(message: Any, send: Any) -> float:
    send(message)
    start = time.perf_counter()
    for _ in range(NUM_MESSAGES):
        send(message)
    return (time.perf_counter() - start) / NUM_MESSAGES


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def main() -> None:
    """The preflight of the files that the command line names."""
    try:
        if said := check(sys.argv[1:]):
            sys.stdout.write(f"{said}\n")
    except TrainwrightError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        # Not by way of its end, which would wait for the others.
        os._exit(error.exit_code)


if __name__ == "__main__":
    main()
