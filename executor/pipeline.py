"""Pipeline parallelism: torch's schedules over stages whose forward and backward actions are noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from executor.actions import BACKWARD, FORWARD
from executor.parallelize import paused
from executor.recorder import Recorder
from planner.plan import Plan

SCHEDULES: dict[str, type[PipelineScheduleSingle]] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class RecordedStage(PipelineStage):
    """A stage that notes when each micro-batch's forward and backward ran.

    The two methods are what every schedule calls per micro-batch, under these names since torch 2.5; they are not
    documented, and only overridden here.
    """

    recorder: Recorder

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Run and note one forward."""
        start = self.recorder.now()
        output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        self.recorder.note(FORWARD, fwd_chunk_id, start)
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Run and note one backward."""
        start = self.recorder.now()
        result = super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        self.recorder.note(BACKWARD, bwd_chunk_id, start)
        return result


class Pipeline:
    """One stage and the schedule that moves micro-batches through it."""

    def __init__(
        self,
        module: nn.Module,
        plan: Plan,
        stage: int,
        group: dist.ProcessGroup,
        loss: Callable[[Tensor, Tensor], Tensor],
        recorder: Recorder,
    ) -> None:
        self.recorder, self.module = recorder, module
        self.loss, self.num_microbatches = loss, plan.num_microbatches
        self.stage = RecordedStage(module, stage, plan.pipeline_parallel, recorder.device, group=group)
        self.stage.recorder = recorder
        # The loss is divided by the number of micro-batches here; torch would scale all gradients afterwards instead.
        self.schedule = SCHEDULES[plan.schedule](
            self.stage, plan.num_microbatches, loss_fn=self._share_of_loss, scale_grads=False
        )

    def _share_of_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        share = self.loss(logits, targets) / self.num_microbatches
        self.recorder.extend(FORWARD)
        return share

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """Forward and backward of all micro-batches; the mean loss on the last stage, None on the others."""
        losses: list[Tensor] = []
        arguments = (inputs,) if self.stage.is_first else ()
        target = targets if self.stage.is_last else None
        # The first step starts with a trial run by which torch learns shapes; DDP must not take it for a step. The
        # last real backward averages the gradients all the same, because the stage asks DDP for it explicitly.
        with paused(self.module):
            # Without return_outputs=False torch would keep the logits of every micro-batch.
            self.schedule.step(*arguments, target=target, losses=losses, return_outputs=False)
        return torch.stack([loss.detach() for loss in losses]).sum() if self.stage.is_last else None
