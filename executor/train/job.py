"""A plan's part on one rank of a training of ours, with the optimizer of its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from executor.applied import AppliedPlan
from executor.axes.loss_scale import scale_of
from executor.rank_model import RankModel
from executor.run.checkpoint import Progress, progress_of
from executor.run.loop_state import loop_state
from executor.run.saving import Saver
from executor.train.hf_weights import export_layers
from planner.prediction import Candidate
from profiles.ranks.rank import TIMEOUT_SECONDS, Rank
from profiles.workloads.workload import Workload


class TrainedPlan(AppliedPlan):
    """`AppliedPlan` of a model that was built here, layer by layer, or of a task's module.

    `step` and `evaluate` take what `executor.train.samples` reads for a replica: inputs and targets, or a list of
    samples.
    """

    def __init__(
        self,
        candidate: Candidate,
        workload: Workload,
        model: RankModel,
        rank: Rank,
        seed: int,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(candidate.plan, _module(workload, model), model, rank, seed=seed, candidate=candidate)
        self.workload = workload
        self._saver: Saver | None = None
        self._timeout_seconds = timeout_seconds

    def save_beside(self, folder: str | Path, extra: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint as `save` does, while training goes on."""
        loop = loop_state(self._own_optimizer, extra)
        if self._saver is None:
            self._saver = Saver(self._timeout_seconds)
        self._saver.start(Path(folder), self._progress(self.num_steps), self, loop)

    def saved(self) -> Path | None:
        """Wait until the checkpoint that was begun is written; where it is.

        Raises: EnvironmentFailure where it could not be.
        """
        return None if self._saver is None else self._saver.wait()

    def close(self) -> None:
        """Let go of what saves."""
        if self._saver is not None:
            self._saver.close()
        super().close()

    def update(self) -> None:
        """Let the optimizer take its step."""
        self._own_optimizer.step()

    def end_step(self) -> None:
        """End the step that is measured, where one is: what is done before the next one is no part of it."""
        if self._window is not None:
            self._window.end()

    def measured_seconds(self) -> list[float]:
        """Seconds of the steps that were measured, on this rank."""
        self.end_step()
        return [] if self._window is None else self._window.seconds

    def export(self, folder: str | Path) -> Path:
        """Write the whole weights as safetensors; what transformers has a class for is read by `from_pretrained`."""
        return super().export(folder) if self.workload.task is not None else export_layers(Path(folder), self)

    def _parts(self, batch: Any) -> Sequence[Any]:
        return self.model.micro_batches(*map(self.model.own_tokens, batch))

    def _progress(self, step: int) -> Progress:
        return replace(progress_of(self.plan, self.workload, self.seed, step), scale=scale_of(self.scale))


def _module(workload: Workload, model: RankModel) -> nn.Module:
    """The first stage, or the task's own module within it."""
    first = next(iter(model.modules.values()))
    stage = first.module if isinstance(first, DistributedDataParallel) else first
    return stage.get_submodule("module") if workload.task is not None else stage
