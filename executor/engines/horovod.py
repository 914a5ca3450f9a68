"""Horovod as an engine: this program's layers and AdamW, whose gradients it averages over the replicas.

Model: replicas sum gradients over their micro-batches, Horovod averages them in the last one's backward pass, in 16
bits where the plan's codec says so. Its ranks are those of the job: they find each other through a server that rank 0
opens and closes again, where `horovodrun` would start processes of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

import horovod.torch as hvd
import torch
import torch.distributed as dist
from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
from horovod.runner.gloo_run import create_slot_env_vars
from horovod.runner.http.http_server import RendezvousServer
from torch import Tensor

from executor.axes.optimizer import LEARNING_RATE
from executor.engines import Training
from executor.engines.watched import WatchedAdamW
from executor.observe.events import BACKWARD, FORWARD, OPTIMIZER, StepTrace
from executor.rank_model import RankModel
from profiles.errors import EnvironmentFailure
from profiles.ranks.environment import LOOPBACK
from profiles.ranks.rank import Rank, unpinned
from profiles.workloads.randomness import begin_random, random_kept

COMPRESSIONS = {"none": hvd.Compression.none, "fp16": hvd.Compression.fp16}


class HorovodTrainer(RankModel):
    """This rank's replica of a plan, whose gradients Horovod averages: `mesh` is not used."""

    def __init__(self, training: Training) -> None:
        plan, rank = training.plan, training.rank
        super().__init__(plan, training.workload, rank, training.seed, None, is_silent=training.is_silent)
        self.measures_norm, self.gradient_norm = False, 0.0
        (self.module,) = self.modules.values()
        with unpinned():
            join(rank)
        trained = [(name, own) for name, own in self.named_parameters.items() if own.requires_grad]
        self.optimizer = hvd.DistributedOptimizer(
            WatchedAdamW([own for _, own in trained], lr=LEARNING_RATE, fused=True),
            named_parameters=trained,
            compression=COMPRESSIONS[plan.codec],
            backward_passes_per_step=plan.num_microbatches,
            op=hvd.Average,
        )

    def step(self, *batch: Any) -> tuple[Tensor | None, StepTrace]:
        """One optimizer step on this replica's slice of the global batch: inputs and targets, or a task's samples.

        The loss is the replica's mean, a tensor on the device.
        """
        parts = self.micro_batches(*(self.own_slice(samples) for samples in batch))
        self.optimizer.watch(self.measures_norm)
        self.recorder.begin()
        total = torch.zeros((), device=self.device)
        with random_kept() if self.draws else contextlib.nullcontext():
            for index, (given, wanted) in enumerate(parts):
                if self.draws:
                    begin_random(self._seed(index))
                start = self.recorder.now()
                share = self.loss(self.module(given), wanted) / len(parts)
                middle = self.recorder.now()
                self.recorder.note(FORWARD, index, start, middle)
                share.backward()
                self.recorder.note(BACKWARD, index, middle)
                total += share.detach()
        self.optimizer.synchronize()
        # As with DDP, whose last backward pass ends when the gradients are averaged.
        self.recorder.extend(BACKWARD)
        start = self.recorder.now()
        with self.optimizer.skip_synchronize():
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.recorder.note(OPTIMIZER, -1, start)
        if self.measures_norm:
            self.gradient_norm = self.optimizer.norm((), self.device)
        self.finish_step()
        return total, self.recorder.finish()


def join(rank: Rank) -> None:
    """Let Horovod form its group of the job's ranks; collective, and once in a process.

    Raises: EnvironmentFailure where ranks are not numbered host by host.
    """
    if hvd.is_initialized():
        return
    everyone: list[Any] = [None] * rank.num_ranks
    dist.all_gather_object(everyone, (socket.gethostname(), rank.local_rank))
    names = list(dict.fromkeys(name for name, _ in everyone))
    hosts = [HostInfo(name, sum(other == name for other, _ in everyone)) for name in names]
    slots = get_host_assignments(hosts, rank.num_ranks, rank.num_ranks)
    if [(slot.hostname, slot.local_rank) for slot in slots] != everyone:
        raise EnvironmentFailure("--engine horovod: ranks must be numbered host by host: start them in that order")
    server = RendezvousServer() if rank.rank == 0 else None
    told: list[Any] = [None]
    if server is not None:
        told = [server.start()]
        server.init(slots)
    dist.broadcast_object_list(told)
    is_one_host = len(names) == 1
    os.environ.update(
        create_slot_env_vars(slots[rank.rank]),
        HOROVOD_GLOO_RENDEZVOUS_ADDR=LOOPBACK if is_one_host else os.environ.get("MASTER_ADDR", LOOPBACK),
        HOROVOD_GLOO_RENDEZVOUS_PORT=str(told[0]),
        HOROVOD_GLOO_IFACE=os.environ.get("GLOO_SOCKET_IFNAME") or ("lo" if is_one_host else ""),
        HOROVOD_CONTROLLER="gloo",
        HOROVOD_CPU_OPERATIONS="gloo",
    )
    hvd.init()
    dist.barrier()
    if server is not None:
        server.stop()
