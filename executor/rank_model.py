"""A model in one process as a plan places it: built once; each pass gives a loss and averaged gradients."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from executor.axes.data import (
    average_after,
    average_gradients,
    averages_after_the_step,
    broadcast_buffers,
    keep_gathered,
    left_whole,
    named_parameters_of,
    paused,
    shard_again,
    shard_alone,
    sum_gradients,
)
from executor.axes.experts import average_experts
from executor.axes.loss_scale import LossScale, scaled, unscaled
from executor.axes.parallelize import build_stage
from executor.axes.part import Part
from executor.axes.pipeline import Edges, Pipeline
from executor.axes.task_stage import TaskStage
from executor.axes.tensor import Loss, loss_context, loss_over
from executor.materialise import materialise
from executor.mesh import coordinates, groups_of, replica_mesh
from executor.micro_batches import on_device
from executor.observe.events import BACKWARD, FORWARD, OPTIMIZER, WEIGHT
from executor.observe.gradient_norm import gradient_norm
from executor.observe.recorder import Recorder
from planner.plans import Plan, stages_of
from profiles.codecs.ddp_hooks import Reduction
from profiles.models.profile import SCALED
from profiles.ranks.rank import Rank
from profiles.workloads.randomness import begin_random, random_kept, silence
from profiles.workloads.tensor_splits import OfRanks
from profiles.workloads.workload import Workload


class RankModel:
    """This rank's part of a model under a plan; without a mesh, of a plan for one device.

    `modules` are the rank's stages by their index; `edges` are what its neighbours would tell, were there any. `adapt`
    changes a stage before its parameters are shared or sharded, `adapt_loss` what is minimised. A silent one draws no
    random numbers but those of its loss. `on_built` is called when the layers of a stage are there. `num_steps` are
    those taken, on which random numbers depend.
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
        is_silent: bool = False,
        on_built: Callable[[], None] | None = None,
    ) -> None:
        self.plan, self.workload, self.device, self.seed = plan, workload, rank.device, seed
        self.num_steps = 0
        self.place, self.recorder = coordinates(plan, rank.rank), Recorder(device=rank.device)
        self.loss = loss_over(plan, workload.loss, mesh)
        if adapt_loss is not None:
            self.loss = adapt_loss(self.loss)
        self.scale = LossScale(rank.device, is_alone=mesh is None) if plan.precision == SCALED else None
        self.groups = groups_of(plan, mesh)
        self.modules: dict[int, nn.Module] = {}
        self.buffers, self.rearranged = dict[str, Tensor](), dict[str, tuple[int, OfRanks]]()
        self.reductions: list[Reduction] = []
        self.draws, self.summed = False, frozenset[str]()
        for index in stages_of(plan, self.place.pipeline):
            stage = self._built(index, mesh, shards_each=adapt is None)
            if on_built is not None:
                on_built()
            if adapt is not None:
                adapt(stage)
            if is_silent:
                silence(stage)
            self.draws |= stage.draws
            self.summed |= stage.summed
            self.rearranged |= stage.rearranged
            self.modules[index] = self._filled(stage, mesh if self.groups.replicas else None)
            self.buffers |= {stage.global_name(path): buffer for path, buffer in stage.statistics.items()}
        self.pipeline: Pipeline | None = None
        if self.groups.stages is not None:
            stages = self.groups.stages
            self.pipeline = Pipeline(self.modules, plan, stages, self.loss, self.recorder, edges, self.scale)
        self.replicas = self.groups.replicas[0] if self.groups.replicas and plan.zero_stage < 2 else None
        # By global name. Taken now: DDP hides split parameters behind plain attributes from its first forward on.
        self.named_parameters = {
            name: parameter for module in self.modules.values() for name, parameter in named_parameters_of(module)
        }
        # DDP's buckets hold the gradients. Were those dropped, the micro-batches before the last would make others
        # beside them: four bytes per parameter more.
        self.keeps_gradients = bool(self.reductions) and plan.num_microbatches > 1

    def _built(self, index: int, mesh: DeviceMesh | None, *, shards_each: bool) -> Part:
        """A stage, its layers sharded as they are made where ZeRO shards them and nothing changes them before."""
        plan, shard_each = self.plan, None
        if mesh is not None and self.groups.replicas and plan.zero_stage >= 2 and shards_each:
            shard_each = functools.partial(shard_alone, plan=plan, replicas=replica_mesh(plan, mesh))
        return build_stage(self.workload, plan, index, self.seed, self.device, self.place, mesh, shard_each)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of all stages of this rank, in model order within a stage."""
        for module in self.modules.values():
            yield from module.parameters()

    def own_slice(self, samples: Any) -> Any:
        """This replica's samples of a global batch, and of each the tokens of this rank's place on the context axis."""
        size = self.plan.micro_batch_size * self.plan.num_microbatches
        return self.own_tokens(samples[self.place.data * size : (self.place.data + 1) * size])

    def micro_batches(self, *batch: Any) -> Sequence[Any]:
        """What `passes` takes, of this replica's inputs and targets, or of a task's samples."""
        return batch if self._cuts_itself else self._microbatches(batch)

    def own_tokens(self, samples: Any) -> Any:
        """Of a replica's samples the tokens of this rank's place on the context axis, on its device."""
        if not isinstance(samples, Tensor):
            return samples
        if self.plan.context_parallel > 1:
            samples = samples.chunk(self.plan.context_parallel, dim=1)[self.place.context].contiguous()
        return samples.to(self.device, non_blocking=True)

    def passes(self, parts: Sequence[Any]) -> Tensor | None:
        """Forward and backward over a replica's micro-batches, gradients averaged over them and over the replicas.

        The loss is the replica's mean, a tensor on the device; None on ranks that do not compute it.
        """
        # What a loop draws between steps, such as which samples come next, is the same on all ranks.
        with random_kept() if self.draws else contextlib.nullcontext(), loss_context(self.plan):
            if self.draws and self._cuts_itself:
                # Stages of layers draw as micro-batches come to them.
                begin_random(self._seed(self.place.pipeline))
            if self.pipeline is not None:
                loss = self.pipeline.step(*(parts if self._cuts_itself else self._told(parts)))
            else:
                loss = self._accumulate(parts)
        self._average()
        return unscaled(loss, self.scale)

    def loss_of(self, parts: Sequence[Any]) -> Tensor | None:
        """The replica's mean loss over some micro-batches, nothing dropped; None on ranks that do not compute it.

        Stages go backward as well, as their schedule has it, and leave gradients that are of no step.
        """
        modes = {part: part.training for module in self.modules.values() for part in module.modules()}
        for module in self.modules.values():
            module.eval()
        try:
            with random_kept() if self.draws else contextlib.nullcontext(), loss_context(self.plan):
                if self.pipeline is not None:
                    loss = self.pipeline.step(*(parts if self._cuts_itself else self._told(parts)))
                    return unscaled(loss, self.scale)
                (module,) = self.modules.values()
                with torch.no_grad(), paused([module]):
                    losses = [self.loss(module(given), wanted) for given, wanted in parts]
                return torch.stack([loss.detach().float() for loss in losses]).mean()
        finally:
            for module in self.modules.values():
                shard_again(module)
            for part, is_training in modes.items():
                part.training = is_training

    def unscale(self) -> bool:
        """Divide gradients by what the loss was scaled with; whether the step is skipped, on all ranks; collective."""
        if self.scale is None:
            return False
        start = self.recorder.now()
        found = self.scale.unscale(self.named_parameters.values())
        self.recorder.note(OPTIMIZER, -1, start)
        self.scale.update(found)
        return self.scale.is_skipping

    def norm_of_gradients(self) -> float:
        """The 2-norm of all gradients of the model; collective."""
        counted = (self.named_parameters[name] for name in self.named_parameters if name not in self._elsewhere)
        return gradient_norm(counted, self.groups.stages)

    def finish_step(self) -> None:
        """Count a step that the optimizer has taken; replicas get the statistics of their first."""
        self.num_steps += 1
        for group in self.groups.replicas if self.buffers else ():
            broadcast_buffers(list(self.buffers.values()), group)

    @property
    def held_tensors(self) -> list[Tensor]:
        """Tensors that outlive a step and come from other threads, which no counter on this thread sees."""
        return [tensor for reduction in self.reductions for tensor in reduction.held_tensors]

    def _filled(self, stage: Part, mesh: DeviceMesh | None) -> nn.Module:
        """A stage whose gradients are averaged, where it has replicas; where it was on meta, with its values."""
        shards = mesh is not None and self.plan.zero_stage >= 2
        if stage.values is not None and not shards:
            materialise(stage, stage.values)
        module = stage if mesh is None else self._averaged(stage, mesh)
        if stage.values is not None and shards:
            # Shards alone, rather than what is whole for a while.
            materialise(stage, stage.values)
        stage.values = None
        return module

    def _averaged(self, stage: Part, mesh: DeviceMesh) -> nn.Module:
        module, reduction = average_gradients(stage, self.plan, mesh, self.recorder)
        self.reductions += [] if reduction is None else [reduction]
        return module

    def _average(self) -> None:
        """Average what neither DDP nor FSDP has averaged in the backward pass."""
        if self.groups.expert_replicas is not None:
            average_experts(self.parameters(), self.groups.expert_replicas, self.plan.data_parallel)
            self.recorder.extend(BACKWARD)
        if self.replicas is not None and averages_after_the_step(self.plan, next(iter(self.modules.values()))):
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            average_after(trained, self.replicas, self.recorder)
            # As with DDP, whose last backward pass ends when the gradients are averaged.
            self.recorder.extend(BACKWARD, WEIGHT)
        if self.groups.tensor is not None:
            sum_gradients([self.named_parameters[name] for name in sorted(self.summed)], self.groups.tensor)
        for stage in self._task_stages:
            assert self.groups.stages is not None
            stage.add_up(self.named_parameters, self.groups.stages)
        if self.plan.zero_stage >= 2:
            left = [parameter for module in self.modules.values() for parameter in left_whole(module)]
            for group in self.groups.replicas if left else ():
                average_after(left, group, self.recorder)

    def _seed(self, microbatch: int) -> int:
        """What random numbers of a micro-batch begin with: they depend on the step and the samples alone."""
        number = self.place.data * max(self.plan.num_microbatches, self.plan.pipeline_parallel) + microbatch
        step = (self.seed * 1_000_003 + self.num_steps) * 65_537 + number
        return (step * self.plan.context_parallel + self.place.context) % 2**63

    def _microbatches(self, slices: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Micro-batches as what the module takes and what the loss takes beside its output."""
        size, task = self.plan.micro_batch_size, self.workload.task
        if task is None:
            return list(zip(*(own.split(size) for own in slices), strict=True))
        (samples,) = slices
        starts = range(0, len(samples), size)
        return [(on_device(task.collate(samples[start : start + size]), self.device), None) for start in starts]

    def _told(self, parts: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        """Tell a task's stages their micro-batches, which go through the pipeline by their numbers."""
        for stage in self._task_stages:
            stage.microbatches = [given for given, _ in parts]
            stage.seeds = [self._seed(index) for index in range(len(parts))]
        numbers = torch.arange(len(parts), device=self.device)
        return numbers, numbers

    @property
    def _cuts_itself(self) -> bool:
        """Whether torch's pipeline cuts the batch."""
        return self.pipeline is not None and self.workload.task is None

    @property
    def _task_stages(self) -> list[TaskStage]:
        return [stage for stage in self.modules.values() if isinstance(stage, TaskStage)]

    @property
    def _elsewhere(self) -> frozenset[str]:
        """Parameters whose gradients another stage counts."""
        return frozenset().union(*(stage.counted_elsewhere for stage in self._task_stages))

    def _accumulate(self, parts: Sequence[tuple[Any, Any]]) -> Tensor:
        """Forward and backward of consecutive micro-batches; DDP averages gradients over ranks in the last one only."""
        (module,), count = self.modules.values(), self.plan.num_microbatches
        total = torch.zeros((), device=self.device)
        for index, (given, wanted) in enumerate(parts):
            is_last = index == count - 1
            if self.draws:
                begin_random(self._seed(index))
            keep_gathered(module, kept=self.plan.zero_stage == 2 and not is_last)
            with paused(() if is_last else (module,)):
                start = self.recorder.now()
                # Nothing here holds the logits while the backward pass runs.
                share = scaled(self.loss(module(given), wanted), self.scale) / count
                middle = self.recorder.now()
                self.recorder.note(FORWARD, index, start, middle)
                share.backward()
                self.recorder.note(BACKWARD, index, middle)
            total += share.detach()
        return total
