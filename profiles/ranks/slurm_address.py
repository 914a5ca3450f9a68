"""Where the ranks of a Slurm job meet: an address of its first node that this host can resolve. Torch-free.

A node's name in Slurm need not be a host's name, and on the node itself a host's name may stand for loopback, where
no other node comes. Names are therefore resolved here, before anything waits, and addresses are told as numbers.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping

from profiles.errors import EnvironmentFailure

SCONTROL_SECONDS = 10.0


def master_address(nodes: str, environ: Mapping[str, str]) -> str:
    """An address of the first of `nodes`, Slurm's list of a job of several, for all ranks alike.

    Loopback is taken where there is nothing else: then all nodes are on one host, or no other can come.
    Raises: EnvironmentFailure where nothing that Slurm tells of the node resolves.
    """
    tried: dict[str, str] = {}
    for name in _names(nodes, environ):
        if name and name not in tried:
            tried[name] = resolved(name)
            if tried[name] and not ipaddress.ip_address(tried[name]).is_loopback:
                return tried[name]
    found = [address for address in tried.values() if address]
    if not found:
        raise EnvironmentFailure(
            f"the address of the job's first node is unknown here: {', '.join(tried) or 'Slurm names none'} does not "
            "resolve; set MASTER_ADDR to one"
        )
    return found[0]


def check_given(address: str) -> None:
    """Check that an address that the user has given resolves here.

    Raises: EnvironmentFailure.
    """
    if not resolved(address):
        raise EnvironmentFailure(
            f"MASTER_ADDR is {address[:80]!r}, which does not resolve on {socket.gethostname()}: give an address of "
            "the job's first node"
        )


def resolved(name: str) -> str:
    """A name's address as numbers, of IPv4 where it has one; "" where it does not resolve."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ""
    by_family = sorted(found, key=lambda one: one[0] != socket.AF_INET)
    return str(by_family[0][4][0])


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list such as `gpu[003-007,9],login1`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    return match.group(1) + (match.group(2) or "") if match else ""


def _names(nodes: str, environ: Mapping[str, str]) -> Iterator[str]:
    """What may name the first node, the surest first."""
    first = first_host(nodes)
    yield first
    yield from _told_by_slurm(first)
    # Of the node that srun was called on: in a batch script the first one.
    yield environ.get("SLURM_LAUNCH_NODE_IPADDR", "")


def _told_by_slurm(node: str) -> Iterator[str]:
    """The address and the host's name that Slurm's configuration has for a node; nothing where it is not there."""
    if not node:
        return
    try:
        done = subprocess.run(
            ["scontrol", "show", "node", node, "--oneliner"],
            capture_output=True, text=True, check=False, timeout=SCONTROL_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return
    for field in ("NodeAddr", "NodeHostName"):
        if match := re.search(rf"\b{field}=(\S+)", done.stdout):
            yield match.group(1)
