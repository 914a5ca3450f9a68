"""One plan in one process: built once, stepped many times; each step gives its loss and what was noted of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from executor.actions import BACKWARD, FORWARD, OPTIMIZER, StepTrace
from executor.codecs import Reduction
from executor.mesh import Coordinates, coordinates
from executor.parallelize import average_gradients, build_optimizer, build_stage, paused
from executor.pipeline import Pipeline
from executor.recorder import Recorder
from planner.plan import Plan
from profiles.rank import Rank
from profiles.workloads import Workload


class Trainer:
    """This rank's part of a plan; without a mesh, of a plan for one device. All ranks step the same plans in order."""

    def __init__(self, plan: Plan, workload: Workload, rank: Rank, seed: int, mesh: DeviceMesh | None) -> None:
        self.plan, self.workload, self.device = plan, workload, rank.device
        self.place: Coordinates = coordinates(plan, rank.rank)
        self.recorder = Recorder(device=rank.device)
        stage = build_stage(workload, plan, self.place.pipeline, seed, rank.device, mesh)
        self.module: nn.Module = stage
        self.reduction: Reduction | None = None
        if mesh is not None and plan.data_parallel > 1:
            self.module, self.reduction = average_gradients(stage, plan, mesh, self.recorder)
        self.pipeline: Pipeline | None = None
        if mesh is not None and plan.pipeline_parallel > 1:
            group = mesh["pipeline"].get_group()
            self.pipeline = Pipeline(self.module, plan, self.place.pipeline, group, workload.loss, self.recorder)
        self.optimizer = build_optimizer(self.module)
        # DDP's buckets hold the gradients. Were those dropped, the micro-batches before the last would make others
        # beside them: four bytes per parameter more.
        self._accumulates_in_buckets = plan.data_parallel > 1 and plan.num_microbatches > 1

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor | None, StepTrace]:
        """One optimizer step on this replica's slice of the global batch.

        The loss is the replica's mean, a tensor on the device; None on stages that do not compute it.
        Shapes: both (global batch, sequence).
        """
        inputs, targets = self._own_slice(inputs), self._own_slice(targets)
        self.recorder.begin()
        if self.pipeline is not None:
            loss = self.pipeline.step(inputs, targets)
        else:
            loss = accumulate(self.module, inputs, targets, self.plan, self.workload.loss, self.recorder)
        start = self.recorder.now()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._accumulates_in_buckets)
        self.recorder.note(OPTIMIZER, -1, start)
        return loss, self.recorder.finish()

    @property
    def held_tensors(self) -> list[Tensor]:
        """Tensors that outlive a step and come from other threads, which no counter on this thread sees."""
        return [] if self.reduction is None else self.reduction.held_tensors

    def _own_slice(self, samples: Tensor) -> Tensor:
        size = self.plan.micro_batch_size * self.plan.num_microbatches
        return samples[self.place.data * size : (self.place.data + 1) * size].to(self.device)


def accumulate(
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    plan: Plan,
    loss: Callable[[Tensor, Tensor], Tensor],
    recorder: Recorder,
) -> Tensor:
    """Forward and backward of consecutive micro-batches; gradients are averaged over ranks in the last one only."""
    total = torch.zeros((), device=inputs.device)
    pairs = zip(inputs.split(plan.micro_batch_size), targets.split(plan.micro_batch_size), strict=True)
    for index, (tokens, wanted) in enumerate(pairs):
        last = index == plan.num_microbatches - 1
        with contextlib.nullcontext() if last else paused(module):
            start = recorder.now()
            # Nothing here holds the logits while the backward pass runs.
            share = loss(module(tokens), wanted) / plan.num_microbatches
            middle = recorder.now()
            recorder.note(FORWARD, index, start, middle)
            share.backward()
            recorder.note(BACKWARD, index, middle)
        total += share.detach()
    return total
