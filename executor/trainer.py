"""One plan in one process: built once, stepped many times; each step gives its loss and what was noted of it."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from executor.axes.optimizer import build_optimizer, is_updated, make_states, states_by_parameter
from executor.engines import Training
from executor.observe.events import OPTIMIZER, StepTrace
from executor.rank_model import RankModel


class Trainer(RankModel):
    """This rank's part of a plan and its optimizer. All ranks step the same plans in order."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.measures_norm, self.gradient_norm = False, 0.0
        self.optimizer = build_optimizer(self.parameters(), self.replicas if self.plan.zero_stage == 1 else None)

    def step(self, *batch: Any) -> tuple[Tensor | None, StepTrace]:
        """One optimizer step on this replica's slice of the global batch: inputs and targets, or a task's samples.

        The loss is the replica's mean, a tensor on the device; None on ranks that do not compute it. Where gradients
        of fp16 are no numbers nothing is updated.
        Shapes: both (global batch, sequence), or where a sample has one answer (global batch, ...), (global batch,).
        """
        parts = self.micro_batches(*(self.own_slice(samples) for samples in batch))
        self.recorder.begin()
        loss = self.passes(parts)
        is_skipped = self.unscale()
        if self.measures_norm:
            self.gradient_norm = math.nan if is_skipped else self.norm_of_gradients()
        start = self.recorder.now()
        if not is_skipped:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)
        self.recorder.note(OPTIMIZER, -1, start)
        self.finish_step()
        return loss, self.recorder.finish()

    @property
    def moments_by_parameter(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """What the optimizer keeps of each parameter that this rank updates."""
        return states_by_parameter(self.optimizer)

    def make_moments(self, names: Collection[str]) -> None:
        """Let the optimizer make what it keeps of some parameters, where it has taken no step."""
        make_states(self.optimizer, [own for name, own in self.named_parameters.items() if name in names])

    def updates(self, parameter: nn.Parameter) -> bool:
        """Whether this rank updates the parameter, rather than receiving it."""
        return is_updated(self.optimizer, parameter)


def trainer_for(training: Training) -> Trainer:
    """This program's trainer, as other engines give theirs."""
    return Trainer(
        training.plan, training.workload, training.rank, training.seed, training.mesh, is_silent=training.is_silent
    )
