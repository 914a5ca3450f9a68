"""The loop of a training on one rank: steps, rates, evaluation, checkpoints, a word every so many steps, and an end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from executor.run.checkpoint import Checkpoints, latest
from executor.run.faults import STOP, diverged, explained, stopped
from executor.run.log_values import scale_values
from executor.run.measurement import Evaluation
from executor.train.job import TrainedPlan
from executor.train.optimizers import Rates
from executor.train.samples import Batch, OfReplica, Source, read_ahead
from executor.train.settings import TrainSettings
from planner.prediction import PlanFile

# What a checkpoint keeps beside the number of steps, on which data and rates depend.
LOSSES = "losses"


@dataclass(slots=True, kw_only=True)
class Told:
    """What ranks tell each other of a step, read when the next one is under way: a device is not waited for."""

    loss: Tensor
    stops: Tensor
    norm: float | None
    factor: float
    scale: dict[str, Any]
    work: Any = None

    def read(self) -> tuple[float, bool]:
        """The mean loss, and whether any rank is asked to stop."""
        if self.work is not None:
            self.work.wait()
        return float(self.loss), bool(self.stops)


@dataclass(slots=True, kw_only=True)
class Loop:
    """A training on this rank; all ranks go through it alike. `say` is told the numbers of every so many steps.

    `first_step` are the steps that were taken before, and `losses_before` theirs, as far as they are known.
    """

    job: TrainedPlan
    file: PlanFile
    settings: TrainSettings
    rates: Rates
    train: OfReplica
    evaluated: Source | None
    checkpoints: Checkpoints | None
    timeout_seconds: float
    predicted_bytes: float
    say: Callable[[dict[str, Any]], None]
    first_step: int = 0
    losses_before: tuple[float, ...] = ()
    losses: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    _told: Told | None = None
    _batches: Iterator[Batch] | None = None
    _since: tuple[int, float] = (0, 0.0)

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return self.settings.num_steps(self.file)

    def run(self, stop: int) -> None:
        """Take steps until `stop` of the whole training were taken."""
        if self._batches is None:
            steps = range(self.job.num_steps, self.num_steps)
            self._batches = read_ahead(self.train, steps, self.settings.data.workers, self.job.rank.device)
            self._since = (self.job.num_steps, time.perf_counter())
        while self.job.num_steps < min(stop, self.num_steps):
            self._step(next(self._batches))

    def finish(self) -> None:
        """Read what the last step told, and evaluate, and save, where that is asked for and was not just done."""
        self.read()
        every = self.settings.evaluation.every
        if every and self.job.num_steps % every:
            self._evaluate()
        kept = self.checkpoints
        if kept is not None and not kept.is_due(self.job.num_steps):
            self._save(kept)
        if kept is not None:
            self._saved(kept)

    def _step(self, batch: Batch) -> None:
        job, settings = self.job, self.settings
        number = job.num_steps
        if number == self._first_measured:
            job.measure(settings.measure.steps)
        with self._explained():
            factor = self.rates.set(number)
            loss = job.step(batch)
            norm = job.clip_(settings.optimizer.clip_norm) if settings.optimizer.clip_norm else None
            job.update()
        is_stopping = self.read()
        self._tell(loss, norm, factor)
        done, kept = job.num_steps, self.checkpoints
        if kept is not None and (is_stopping or kept.is_due(done)):
            # What is no number is never saved.
            self.read()
            self._save(kept)
            if is_stopping:
                path = self._saved(kept)
                assert path is not None
                raise stopped(job.plan, done, path)
        if settings.evaluation.every and done % settings.evaluation.every == 0:
            self._evaluate()

    @property
    def _first_measured(self) -> int:
        """The step before which measuring begins, so that the last of a short training can still be timed."""
        left = self.num_steps - self.first_step
        return self.first_step + max(0, min(self.settings.measure.start, left - 2))

    def _tell(self, loss: Tensor, norm: float | None, factor: float) -> None:
        stops = torch.tensor(float(STOP.has_come), device=self.job.rank.device)
        scale = scale_values(self.job.scale)
        told = Told(loss=loss.detach(), stops=stops, norm=norm, factor=factor, scale=scale)
        if self.job.rank.num_ranks > 1 and self.checkpoints is not None:
            told.work = dist.all_reduce(stops, op=dist.ReduceOp.MAX, async_op=True)
        self._told = told

    def read(self) -> bool:
        """What the step before told: its loss is kept and logged, and a training ends whose loss is no number.

        Gives whether any rank was asked to stop.
        """
        told, self._told = self._told, None
        if told is None:
            return False
        with self._explained(between_steps=True):
            loss, is_stopping = told.read()
        step = self.first_step + len(self.losses) + 1
        if not math.isfinite(loss):
            # What is being saved is of before, and would be lost with the process.
            raise diverged(self.job.plan, step, loss, self._saved(self.checkpoints) if self.checkpoints else None)
        self.losses.append(loss)
        if step % self.settings.log.every == 0 or step == self.num_steps:
            self._log(step, loss, told)
        return is_stopping

    def _log(self, step: int, loss: float, told: Told) -> None:
        (before, since), now = self._since, time.perf_counter()
        self._since = (step, now)
        values = {"step": step, "loss": loss, "seconds": (now - since) / max(1, step - before)}
        values["lr"] = self.settings.optimizer.lr * told.factor
        if told.norm is not None:
            values["gradient_norm"] = told.norm
        values |= told.scale
        if self.train.source.num_samples:
            values["epoch"] = step * self.train.share.size / self.train.source.num_samples
        self.say(values)

    def _save(self, kept: Checkpoints) -> None:
        """Begin to save where the training is; the losses of all steps go with it."""
        self.job.end_step()
        with self._explained(between_steps=True):
            self.job.save_beside(kept.folder, {LOSSES: [*self.losses_before, *self.losses]})

    def _saved(self, kept: Checkpoints) -> Path | None:
        """Wait for what was begun to be saved; the newest there is."""
        with self._explained(between_steps=True):
            return self.job.saved() or latest(Path(kept.folder))

    def _evaluate(self) -> None:
        """The mean loss over unseen samples, the same ones every time."""
        assert self.evaluated is not None
        self.job.end_step()
        share, source = self.train.share, self.evaluated
        count = self.settings.evaluation.batches
        if source.num_samples:
            count = min(count, max(1, source.num_samples // share.size))
        total = 0.0
        for number in range(count):
            first = share.first if not source.num_samples else number * share.size + share.first
            batch = source.of_step(number, first, share.count, share.size)
            with self._explained(between_steps=True):
                total += float(self.job.evaluate(batch))
        loss = total / count
        self.evaluations.append(Evaluation(step=self.job.num_steps, loss=loss))
        self.say({"step": self.job.num_steps, "evaluation_loss": loss})

    def _explained(self, *, between_steps: bool = False) -> Any:
        return explained(
            self.job.plan,
            self.job.rank,
            self.job.num_steps + (not between_steps),
            self.timeout_seconds,
            self.predicted_bytes,
            between_steps=between_steps,
        )
