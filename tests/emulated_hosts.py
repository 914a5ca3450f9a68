"""Two hosts on one machine: network namespaces with a cable between them whose speed can be set."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent.parent
CARD = "eth0"
NUM_HOSTS = 2
# The queue of the throttle: what may go out at once, and how long a packet may wait.
BURST, LATENCY = "64kb", "50ms"


@dataclass(frozen=True, slots=True)
class Hosts:
    """Two namespaces, reached by name; `subnet` is the first three numbers of their addresses."""

    names: tuple[str, str]
    subnet: str

    def throttle(self, rate: str) -> None:
        """Limit what each host sends to a rate in tc's words; "" for no limit."""
        for name in self.names:
            _host(name, "tc", "qdisc", "del", "dev", CARD, "root", check=False)
            if rate:
                limit = ("tbf", "rate", rate, "burst", BURST, "latency", LATENCY)
                _host(name, "tc", "qdisc", "add", "dev", CARD, "root", *limit)

    def torchrun(self, *arguments: str, timeout: float = 600.0) -> tuple[int, str, str]:
        """Run a module of ours with a rank on each host, pinned; rank 0's exit code, output and errors."""
        with self.started(*arguments) as (first, *others):
            output, errors = first.communicate(timeout=timeout)
            for other in others:
                other.communicate(timeout=60)
        return first.returncode, output, errors

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
        """torchrun's processes for a module of ours, one on each host with a rank, pinned; ended with the block."""
        cores = sorted(os.sched_getaffinity(0))
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": CARD, "PYTHONPATH": str(SOURCE)}
        processes: list[subprocess.Popen[str]] = []
        try:
            for rank, name in enumerate(self.names):
                command = [
                    "ip", "netns", "exec", name, "taskset", "-c", str(cores[rank % len(cores)]),
                    sys.executable, "-m", "torch.distributed.run", "--nnodes", str(NUM_HOSTS), "--node-rank", str(rank),
                    "--nproc-per-node", "1", "--master-addr", f"{self.subnet}.1", "--master-port", "29511",
                    "-m", *arguments,
                ]  # fmt: skip
                processes.append(
                    subprocess.Popen(
                        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=SOURCE
                    )
                )
            yield processes
        finally:
            for process in processes:
                process.kill()


def can_emulate() -> bool:
    """Whether namespaces can be made here, with a cable and a throttle: as root, where the kernel allows it."""
    if os.geteuid() or not all(shutil.which(tool) for tool in ("ip", "tc", "taskset")):
        return False
    try:
        with two_hosts() as hosts:
            hosts.throttle("1gbit")
    except subprocess.CalledProcessError:
        return False
    return True


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two hosts with a cable between them, gone afterwards."""
    number = os.getpid() % 200
    hosts = Hosts((f"tw{os.getpid()}a", f"tw{os.getpid()}b"), f"10.77.{number}")
    ends = tuple(f"tw{os.getpid() % 10**6}{letter}" for letter in "ab")
    try:
        for name in hosts.names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for place, (name, end) in enumerate(zip(hosts.names, ends, strict=True)):
            _run("ip", "link", "set", end, "netns", name)
            _host(name, "ip", "link", "set", end, "name", CARD)
            _host(name, "ip", "addr", "add", f"{hosts.subnet}.{place + 1}/24", "dev", CARD)
            for card in (CARD, "lo"):
                _host(name, "ip", "link", "set", card, "up")
        yield hosts
    finally:
        for name in hosts.names:
            _run("ip", "netns", "del", name, check=False)


def _host(name: str, *command: str, check: bool = True) -> None:
    _run("ip", "netns", "exec", name, *command, check=check)


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True)
