"""One plan in one process: built once, stepped many times; each step gives its loss and what was noted of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from executor.axes.data import average_after, average_gradients, averages_after_the_step, keep_gathered, paused
from executor.axes.experts import average_experts
from executor.axes.optimizer import build_optimizer
from executor.axes.parallelize import Stage, build_stage
from executor.axes.pipeline import Edges, Pipeline
from executor.axes.tensor import Loss, loss_context, loss_over
from executor.mesh import Coordinates, coordinates, replica_mesh
from executor.observe.events import BACKWARD, FORWARD, OPTIMIZER, WEIGHT, StepTrace
from executor.observe.recorder import Recorder
from planner.plans import Plan, stages_of
from profiles.codecs.ddp_hooks import Reduction
from profiles.ranks.rank import Rank
from profiles.workloads.workload import Workload


class Trainer:
    """This rank's part of a plan; without a mesh, of a plan for one device. All ranks step the same plans in order.

    `modules` are the rank's stages by their index; `edges` are what its neighbours would tell, were there any. `adapt`
    changes a stage before its parameters are shared or sharded, `adapt_loss` what is minimised.
    """

    def __init__(
        self,
        plan: Plan,
        workload: Workload,
        rank: Rank,
        seed: int,
        mesh: DeviceMesh | None,
        edges: Edges | None = None,
        adapt: Callable[[nn.Module], None] | None = None,
        adapt_loss: Callable[[Loss], Loss] | None = None,
    ) -> None:
        self.plan, self.workload, self.device = plan, workload, rank.device
        self.place: Coordinates = coordinates(plan, rank.rank)
        self.recorder = Recorder(device=rank.device)
        self.loss = loss_over(plan, workload.loss, mesh)
        if adapt_loss is not None:
            self.loss = adapt_loss(self.loss)
        self.modules: dict[int, nn.Module] = {}
        self.reductions: list[Reduction] = []
        copies = mesh if plan.data_parallel * plan.context_parallel > 1 else None
        for index in stages_of(plan, self.place.pipeline):
            stage = build_stage(workload, plan, index, seed, rank.device, self.place, mesh)
            if adapt is not None:
                adapt(stage)
            self.modules[index] = stage if copies is None else self._averaged(stage, copies)
        self.pipeline: Pipeline | None = None
        if mesh is not None and plan.pipeline_parallel > 1:
            group = mesh["pipeline"].get_group()
            self.pipeline = Pipeline(self.modules, plan, group, self.loss, self.recorder, edges)
        self.replicas = replica_mesh(plan, copies).get_group() if copies is not None and plan.zero_stage < 2 else None
        shares_experts = mesh is not None and plan.expert_parallel > 1
        self.expert_replicas = mesh["expert_replicas"].get_group() if mesh is not None and shares_experts else None
        self.optimizer = build_optimizer(self.parameters(), self.replicas if plan.zero_stage == 1 else None)
        # Taken now: DDP over split parameters hides them behind plain attributes from its first forward on.
        self.named_parameters = {index: dict(module.named_parameters()) for index, module in self.modules.items()}
        # DDP's buckets hold the gradients. Were those dropped, the micro-batches before the last would make others
        # beside them: four bytes per parameter more.
        self._accumulates_in_buckets = bool(self.reductions) and plan.num_microbatches > 1

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of all stages of this rank, in model order within a stage."""
        for module in self.modules.values():
            yield from module.parameters()

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor | None, StepTrace]:
        """One optimizer step on this replica's slice of the global batch.

        The loss is the replica's mean, a tensor on the device; None on ranks that do not compute it.
        Shapes: both (global batch, sequence), or where a sample has one answer (global batch, ...), (global batch,).
        """
        inputs, targets = self._own_slice(inputs), self._own_slice(targets)
        self.recorder.begin()
        with loss_context(self.plan):
            if self.pipeline is not None:
                loss = self.pipeline.step(inputs, targets)
            else:
                loss = self._accumulate(inputs, targets)
        if self.expert_replicas is not None:
            average_experts(self.parameters(), self.expert_replicas, self.plan.data_parallel)
            self.recorder.extend(BACKWARD)
        if self.replicas is not None and averages_after_the_step(self.plan):
            average_after(self.parameters(), self.replicas, self.recorder)
            # As with DDP, whose last backward pass ends when the gradients are averaged.
            self.recorder.extend(BACKWARD, WEIGHT)
        start = self.recorder.now()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._accumulates_in_buckets)
        self.recorder.note(OPTIMIZER, -1, start)
        return loss, self.recorder.finish()

    @property
    def moments_by_parameter(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """What the optimizer keeps of each parameter that this rank updates."""
        return self._own_optimizer.state  # type: ignore[return-value]

    def updates(self, parameter: nn.Parameter) -> bool:
        """Whether this rank updates the parameter, rather than receiving it."""
        return any(parameter is own for group in self._own_optimizer.param_groups for own in group["params"])

    @property
    def _own_optimizer(self) -> Optimizer:
        # ZeRO 1 wraps the optimizer of a rank's share.
        own: Optimizer = getattr(self.optimizer, "optim", self.optimizer)
        return own

    @property
    def held_tensors(self) -> list[Tensor]:
        """Tensors that outlive a step and come from other threads, which no counter on this thread sees."""
        return [tensor for reduction in self.reductions for tensor in reduction.held_tensors]

    def _averaged(self, stage: Stage, mesh: DeviceMesh) -> nn.Module:
        module, reduction = average_gradients(stage, self.plan, mesh, self.recorder)
        self.reductions += [] if reduction is None else [reduction]
        return module

    def _own_slice(self, samples: Tensor) -> Tensor:
        """This replica's samples, and of each the tokens of this rank's place on the context axis."""
        size = self.plan.micro_batch_size * self.plan.num_microbatches
        own = samples[self.place.data * size : (self.place.data + 1) * size]
        if self.plan.context_parallel > 1:
            own = own.chunk(self.plan.context_parallel, dim=1)[self.place.context].contiguous()
        return own.to(self.device)

    def _accumulate(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward of consecutive micro-batches; DDP averages gradients over ranks in the last one only."""
        (module,), size, count = self.modules.values(), self.plan.micro_batch_size, self.plan.num_microbatches
        total = torch.zeros((), device=inputs.device)
        for index, (tokens, wanted) in enumerate(zip(inputs.split(size), targets.split(size), strict=True)):
            is_last = index == count - 1
            keep_gathered(module, kept=self.plan.zero_stage == 2 and not is_last)
            with paused(() if is_last else (module,)):
                start = self.recorder.now()
                # Nothing here holds the logits while the backward pass runs.
                share = self.loss(module(tokens), wanted) / count
                middle = self.recorder.now()
                self.recorder.note(FORWARD, index, start, middle)
                share.backward()
                self.recorder.note(BACKWARD, index, middle)
            total += share.detach()
        return total
