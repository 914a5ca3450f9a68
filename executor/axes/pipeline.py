"""Pipeline parallelism: torch's schedules over stages whose forward and backward actions are noted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage

from executor.axes.data import paused
from executor.axes.loss_scale import LossScale, scaled
from executor.axes.task_stage import TaskStage
from executor.observe.events import BACKWARD, FORWARD, WEIGHT
from executor.observe.recorder import Recorder
from planner.plans import Plan
from planner.schedules.registry import Schedule
from planner.schedules.traits import ONE_STAGE


def torch_schedule(rules: Schedule) -> Callable[..., Any]:
    """The class of torch that carries a schedule out, over a rank's one stage or a list of several."""
    return cast(Callable[..., Any], getattr(pipelining, rules.torch_class))


class RecordedStage(PipelineStage):
    """A stage that notes when each micro-batch's forward and backward ran, and its weight gradients where apart.

    The three methods are what every schedule calls per micro-batch, under these names since torch 2.5; they are not
    documented, and only overridden here.
    """

    recorder: Recorder

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Run and note one forward."""
        if isinstance(self.submod, TaskStage):
            self.submod.current = fwd_chunk_id
        with self._noted(FORWARD, fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Run and note one backward."""
        with self._noted(BACKWARD, bwd_chunk_id):
            return super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Run and note the weight gradients of one backward."""
        with self._noted(WEIGHT, bwd_chunk_id):
            return super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)

    def _get_init_p2p_neighbors_ops(self) -> list[Any]:
        """What torch 2.11 sends first to every neighbour, but for one on this rank itself: gloo has no way there.

        Not documented; torch 2.13 lets stages such as this one vote instead.
        """
        first = super()._get_init_p2p_neighbors_ops()
        return [op for op in first if op.peer != dist.get_rank()]

    @contextlib.contextmanager
    def _noted(self, name: str, microbatch: int) -> Any:
        start = self.recorder.now()
        yield
        self.recorder.note(name, microbatch, start, stage=self.stage_index)


class RehearsedStage(RecordedStage):
    """A stage whose neighbours do not exist: what it would learn from them is known.

    torch asks all stages whether they know their shapes (the two methods, since torch 2.13), and reads the answer's
    value, which a fake tensor does not have.
    """

    def _warmup_forward_vote(self, *_: Any, **__: Any) -> Any:
        return _Yes()

    def _warmup_backward_result(self, *_: Any, **__: Any) -> Any:
        return _Yes()


class _Yes:
    def item(self) -> int:
        return 1


# Examples of what a stage, by its index, is given and gives.
Edges = Callable[[int], tuple[Tensor, Tensor]]


class Pipeline:
    """This rank's stages and the schedule that moves micro-batches through them; `edges` are given in a rehearsal.

    Losses are multiplied by their `scale` in fp16.
    """

    def __init__(
        self,
        modules: Mapping[int, nn.Module],
        plan: Plan,
        group: dist.ProcessGroup,
        loss: Callable[[Tensor, Tensor], Tensor],
        recorder: Recorder,
        edges: Edges | None = None,
        scale: LossScale | None = None,
    ) -> None:
        self.recorder, self.modules = recorder, modules
        self.loss, self.scale, self.num_microbatches = loss, scale, plan.num_microbatches
        kind = RecordedStage if edges is None else RehearsedStage
        self.stages = []
        for index, module in modules.items():
            known = module.edges() if isinstance(module, TaskStage) else (None, None)
            given, gives = edges(index) if edges else known
            self.stages.append(kind(module, index, plan.num_stages, recorder.device, given, gives, group=group))
        for stage in self.stages:
            stage.recorder = recorder
        # The loss is divided by the number of micro-batches here; torch would scale all gradients afterwards instead.
        self.schedule = torch_schedule(plan.rules)(
            self.stages[0] if plan.rules.stages == ONE_STAGE else self.stages,
            plan.num_microbatches,
            loss_fn=self._share_of_loss,
            scale_grads=False,
        )

    def _share_of_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        share = scaled(self.loss(logits, targets), self.scale) / self.num_microbatches
        self.recorder.extend(FORWARD)
        return share

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """Forward and backward of all micro-batches; the mean loss where the last stage is, None elsewhere."""
        losses: list[Tensor] = []
        has_last = any(stage.is_last for stage in self.stages)
        arguments = (inputs,) if any(stage.is_first for stage in self.stages) else ()
        target = targets if has_last else None
        # The first step starts with a trial run by which torch learns shapes; DDP must not take it for a step. The
        # last real backward averages the gradients all the same, because the stage asks DDP for it explicitly.
        with paused(self.modules.values()):
            # Without return_outputs=False torch would keep the logits of every micro-batch.
            self.schedule.step(*arguments, target=target, losses=losses, return_outputs=False)
        return torch.stack([loss.detach() for loss in losses]).sum() if has_last else None
