"""A program for Ray Train: it places as many workers as the plan has ranks, and each starts one rank. Torch-free."""

from __future__ import annotations

from executor.jobs.job import USES_INSTALLED, Job, about
from profiles.errors import InputError
from profiles.ranks.cuda_setup import ALLOCATOR, EXPANDABLE
from profiles.ranks.environment import ALLOCATOR_ENVIRONMENT, HUGE_PAGES, THREAD_ENVIRONMENT

# Ray's own process group tells where the ranks meet, and is gone before they do.
PROGRAM = '''\
"""Starts the ranks of a plan as workers of Ray Train: `python THIS_FILE`, where a Ray cluster is, or on this machine.

{about}
{uses}
Every node has this folder, with the plan in it, at the same place.
"""

import os
import socket
import subprocess
import sys

import ray
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer

COMMAND = {command!r}
NUM_RANKS, RANKS_PER_NODE = {num_ranks}, {ranks_per_node}
# As the program's own launcher starts its ranks.
VARIABLES = {variables!r}


def rank(given):
    """One rank, in a process of its own: the worker's has threads and a process group of Ray's."""
    place = get_context()
    if place.get_local_world_size() != RANKS_PER_NODE:
        here = f"{{place.get_local_world_size()}} ranks on node {{place.get_node_rank()}}"
        raise RuntimeError(f"{{here}}, where the plan has {{RANKS_PER_NODE}} on each: free the nodes, or plan anew")
    with socket.socket() as free:
        free.bind(("", 0))
        told = [ray.util.get_node_ip_address(), free.getsockname()[1]]
    dist.broadcast_object_list(told)
    dist.destroy_process_group()
    environment = VARIABLES | dict(os.environ) | {{
        "RANK": str(place.get_world_rank()), "WORLD_SIZE": str(place.get_world_size()),
        "LOCAL_RANK": str(place.get_local_rank()), "LOCAL_WORLD_SIZE": str(place.get_local_world_size()),
        "GROUP_RANK": str(place.get_node_rank()), "MASTER_ADDR": told[0], "MASTER_PORT": str(told[1]),
    }}
    # Ray's agents may have left a store of theirs; the ranks have their own.
    environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    code = subprocess.run([sys.executable, *COMMAND], cwd=given["folder"], env=environment).returncode
    if code:
        raise RuntimeError(f"rank {{place.get_world_rank()}} of {{NUM_RANKS}} ended with {{code}}, as it says above")


if __name__ == "__main__":
    TorchTrainer(
        rank,
        train_loop_config={{"folder": os.path.dirname(os.path.abspath(__file__))}},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=NUM_RANKS,
            use_gpu={use_gpu},
            resources_per_worker={resources!r},
            placement_strategy="PACK",
        ),
        run_config=RunConfig(name={name!r}, failure_config=FailureConfig(max_failures={max_failures})),
    ).fit()
'''


def ray_train(job: Job) -> str:
    """The program that starts the plan's ranks as workers of a TorchTrainer."""
    words, keeps = list(job.arguments), "--checkpoint" in job.arguments
    if job.max_restarts and not keeps:
        raise InputError(
            "--max-restarts: Ray restarts all workers, and without --checkpoint they would start from step 0: give both"
        )
    if keeps and "--resume" not in words:
        words.append("--resume")
    is_gpu = job.file.machine_device_kind == "cuda"
    if is_gpu:
        variables = THREAD_ENVIRONMENT | ({} if job.file.machine_name.startswith("mi") else {ALLOCATOR: EXPANDABLE})
    else:
        variables = {**THREAD_ENVIRONMENT, **ALLOCATOR_ENVIRONMENT, "GLIBC_TUNABLES": HUGE_PAGES}
    return PROGRAM.format(
        about=about(job).replace("\\", "?").replace('"', "'"),
        uses=USES_INSTALLED,
        command=["-m", "executor", job.plan_path, *words],
        num_ranks=job.file.num_devices,
        ranks_per_node=job.ranks_per_node,
        variables=variables,
        use_gpu=is_gpu,
        resources={"GPU": 1, "CPU": 1} if is_gpu else {"CPU": 1},
        name=job.name,
        max_failures=job.max_restarts,
    )
