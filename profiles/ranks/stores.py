"""Where the ranks of a job meet: a key-value store, and the sockets beside it, open to as few as can be.

torch's own stores listen on every address of a host and ask nobody who they are, and what is put into them decides to
whom a rank connects, and so what it unpickles. Ranks of one host therefore meet in a file that only their user can
read, and send by loopback. Ranks of several hosts need a port: this one listens at the address asked for and no other.
torch has no password for it; torchrun's agent, where it has started the ranks, opens its own (`open_to`).
"""

from __future__ import annotations

import datetime
import os
import socket
from pathlib import Path
from typing import Any

import torch.distributed as dist

from profiles.errors import EnvironmentFailure
from profiles.ranks.environment import LOOPBACK, in_job, is_on_one_host, join_slurm
from profiles.ranks.heartbeats import Board, FolderBoard, StoreBoard

# The folder in which the ranks of one host meet.
STORE_VARIABLE = "TRAINWRIGHT_STORE"
LOOPBACK_INTERFACE = "lo"
# Which network interfaces the backends listen on.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def num_restarts() -> int:
    """How often the ranks of this job have been started again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def one_host_environment(folder: Path) -> dict[str, str]:
    """Variables for ranks of one host: they meet in `folder`, and what they send stays on loopback."""
    return {STORE_VARIABLE: str(folder), **dict.fromkeys(INTERFACE_VARIABLES, LOOPBACK_INTERFACE)}


def join_store(timeout_seconds: float) -> dict[str, Any]:
    """Make or join this job's store; what `init_process_group` is to be given, {} where torchrun's agent has one.

    Raises: EnvironmentFailure where the job's address cannot be used.
    """
    folder = os.environ.get(STORE_VARIABLE)
    if folder:
        store = dist.FileStore(str(Path(folder, f"store-{num_restarts()}")), _num_ranks())  # type: ignore[attr-defined]
        store.set_timeout(datetime.timedelta(seconds=timeout_seconds))
        return _joined(store)
    if not _is_agents():
        return _joined(_port_store(timeout_seconds))
    if not num_restarts():
        return {}
    # The agent's store has the addresses of the ranks before this attempt still.
    store = _tcp_store(os.environ["MASTER_ADDR"], timeout_seconds)
    return _joined(dist.PrefixStore(f"attempt-{num_restarts()}", store))  # type: ignore[attr-defined]


def life_signs(timeout_seconds: float) -> Board:
    """Where the ranks of this job, which have met, put their signs of life.

    Raises: EnvironmentFailure where the job's address cannot be used.
    """
    folder = os.environ.get(STORE_VARIABLE)
    if folder:
        # In files rather than in the store, which is one that only grows.
        return FolderBoard(Path(folder), num_restarts())
    store = _tcp_store(os.environ["MASTER_ADDR"], timeout_seconds)
    return StoreBoard(dist.PrefixStore(f"beats-{num_restarts()}", store))  # type: ignore[attr-defined]


def stay_on_this_host() -> None:
    """Keep a job that something else started to loopback where all of its ranks are on this host."""
    if not is_on_one_host():
        return
    for name in INTERFACE_VARIABLES:
        os.environ.setdefault(name, LOOPBACK_INTERFACE)
    if not _is_agents():
        os.environ["MASTER_ADDR"] = LOOPBACK


def open_to() -> str:
    """What a job that something else started leaves open, and to whom, in a sentence; "" where that is nobody."""
    if not in_job():
        return ""
    join_slurm()
    if is_on_one_host() and not _is_agents():
        return ""
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    port = f"{where}, on every address of that host" if _is_agents() else where
    return (
        f"the ranks meet at {port}, without a password, as torch has none: whoever reaches that port, or those of gloo "
        "and NCCL, can run code in this job; keep them inside a network that you trust"
    )


def _joined(store: Any) -> dict[str, Any]:
    return {"store": store, "rank": int(os.environ["RANK"]), "world_size": _num_ranks()}


def _num_ranks() -> int:
    return int(os.environ["WORLD_SIZE"])


def _is_agents() -> bool:
    """Whether torchrun's agent hosts a store for its ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _port_store(timeout_seconds: float) -> Any:
    """The job's store at its address and no other: rank 0 hosts it."""
    address = os.environ["MASTER_ADDR"]
    if os.environ["RANK"] != "0":
        return _tcp_store(address, timeout_seconds)
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, _port(), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        raise EnvironmentFailure(
            f"rank 0 cannot listen at {address}:{_port()} (MASTER_ADDR, MASTER_PORT): {error.strerror or error}; give "
            "an address of the host that rank 0 is on, and a free port"
        ) from error
    # The store owns the socket from here on.
    return _tcp_store(address, timeout_seconds, is_master=True, master_listen_fd=listener.detach())


def _tcp_store(address: str, timeout_seconds: float, **host: Any) -> Any:
    return dist.TCPStore(  # type: ignore[attr-defined]
        address,
        _port(),
        timeout=datetime.timedelta(seconds=timeout_seconds),
        **({"is_master": False} | host),
    )


def _port() -> int:
    wanted = os.environ.get("MASTER_PORT", "")
    if not wanted.isdigit() or not 0 < int(wanted) <= 65535:
        raise EnvironmentFailure(f"MASTER_PORT={wanted} is not a port: give a number from 1 to 65535")
    return int(wanted)
