"""What the ranks of the launcher tests run."""

import os
import random
import signal
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from profiles.errors import PlanError
from profiles.ranks.rank import join_group, report, wait_for_first
from profiles.ranks.stores import num_restarts


def add_up(payload: dict[str, Any]) -> dict[str, Any]:
    with join_group("cpu") as rank:
        total = torch.tensor([float(rank.rank + 1)])
        dist.all_reduce(total)
        report(0.5, "half way", "a line")
        cores: list[Any] = [None] * rank.num_ranks
        dist.all_gather_object(cores, sorted(os.sched_getaffinity(0)))
    return {"total": total.item(), "payload": payload, "threads": torch.get_num_threads(), "cores": cores}


def fail(how: str) -> None:
    with join_group("cpu") as rank:
        dist.barrier()
        if rank.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "left":
                os._exit(0)
            if how == "ours":
                raise PlanError("plan colour=blue: not a field")
            raise ZeroDivisionError("first line\nsecond line")
        # The others wait in a collective, as they would in training.
        dist.barrier()


def sleep(_: object) -> None:
    """Rank 0 sleeps, the others wait for it in a call of which no Python code ends the wait."""
    with join_group("cpu"):
        report(0.1, "asleep")
        if not dist.get_rank():
            time.sleep(120)
        wait_for_first("sleep", 120)


def fail_beside_work(_: object) -> None:
    """Rank 1 fails while rank 0 computes: the launcher ends that one by SIGTERM."""
    with join_group("cpu") as rank:
        dist.barrier()
        if rank.rank == 1:
            raise ZeroDivisionError("of rank 1")
        while True:
            time.sleep(0.01)


def die_once(payload: dict[str, Any]) -> int:
    """Rank 1 is killed in the first attempt; in the second all ranks meet again."""
    return _killed_once(os.getpid())


def lose_server_once(_: object) -> int:
    """The server that forked the ranks is killed in the first attempt; in the second all ranks meet again."""
    return _killed_once(os.getppid())


def _killed_once(process: int) -> int:
    with join_group("cpu") as rank:
        if not num_restarts():
            if rank.rank == 1:
                os.kill(process, signal.SIGKILL)
            time.sleep(60)
        total = torch.ones(1)
        dist.all_reduce(total)
        return int(total) * num_restarts()


def about(_: object) -> list[Any]:
    """What tells where each rank came from, and what it would draw."""
    own = {
        "was_the_program": "colorsys" in sys.modules,
        "parent": os.getppid(),
        "random": random.random(),
        "numpy": float(np.random.rand()),  # the state that a library would use
        "torch_seed": torch.initial_seed(),
    }
    with join_group("cpu") as rank:
        everyone: list[Any] = [None] * rank.num_ranks
        dist.all_gather_object(everyone, own)
    return everyone
