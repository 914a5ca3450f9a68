"""The check that a plan trains as a plain loop does: gradients, weights after steps, the optimizer, copies, a resume.

Before a plan is run it trains a reduced model (`check_subject`). Rank 0 holds the gradients of the first step and the
weights after a few steps of plain descent against a loop without any layout (`plain_loop`); every rank holds its
optimizer against one that is written by hand; copies of a weight must have the same bits.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.optim import SGD, Optimizer

from executor.mesh import Meshes
from executor.run import check_bounds as bounds
from executor.run.adamw_by_hand import AdamWByHand, own_part
from executor.run.check_findings import (
    COPIES,
    OPTIMIZER,
    RESUMED,
    Findings,
    compare_gradients,
    compare_loss,
    compare_projections,
    compare_weights,
    verdict,
)
from executor.run.check_subject import Subject
from executor.run.checkpoint import Progress, restore, state_of
from executor.run.checkpoint_pieces import InPieces
from executor.run.measurement import LossCheck
from executor.run.plain_loop import PlainLoop
from executor.run.reference import taken_step
from executor.run.saving import save
from executor.run.whole_tensors import Gatherer, bits, differing, fingerprints
from executor.trainer import Trainer
from profiles.codecs.codec import codec
from profiles.models.profile import MIXED
from profiles.ranks.rank import Rank, wait_for_first

# Of plain descent, and of the plan's optimizer after it.
NUM_STEPS, NUM_OPTIMIZER_STEPS = 3, 3
# How far plain descent goes in a step, as a share of the weights.
STEP_SHARE = 0.01
# One device works off the plain loop while the others wait for it.
PLAIN_SECONDS = 3600.0


class WatchedOptimizer:
    """An optimizer that lets somebody look at the gradients before its step."""

    def __init__(self, optimizer: Optimizer, look: Callable[[], None]) -> None:
        self.optim, self.look = optimizer, look

    def step(self) -> None:
        """Look, and take the step."""
        self.look()
        self.optim.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.optim.zero_grad(set_to_none=set_to_none)


class TrainingCheck:
    """The check of one plan; all ranks go through it together, `key` is its own in the job."""

    def __init__(self, subject: Subject, rank: Rank, meshes: Meshes, key: str, folder: Path | None = None) -> None:
        self.subject, self.rank, self.key, self.folder = subject, rank, key, folder
        self.plan, self.mesh = subject.plan, meshes.of(subject.plan)
        self.findings = Findings()
        self.num_waits = 0
        self.rate = 0.0

    def run(self) -> LossCheck:
        """Compare everything; all ranks give what rank 0 has found."""
        self.plain = self._plain_loop() if self.rank.rank == 0 else None
        self.nudged: PlainLoop | None = None
        if self.plain is not None and self._is_own and self.plan.precision not in MIXED:
            # A user's own module may make much of last bits, as norms over two samples do: this one shows it.
            self.nudged = self._plain_loop(self.plan.precision)
            self.nudged.nudge()
        if said := self._from_first(self._why_not):
            return LossCheck(status="skipped", reason=str(said), tolerance_fraction=0.0)
        trainer = self._trainer()
        own = trainer.optimizer
        self._descend(trainer)
        self.plain = self.nudged = None
        trainer.optimizer = own
        self._optimize(trainer)
        if self.folder is not None:
            trainer = self._resume(trainer, self.folder)
        del trainer, own
        gc.collect()
        answer: list[Any] = [verdict(self.plan, self.subject.words, self.findings) if self.rank.rank == 0 else None]
        dist.broadcast_object_list(answer)
        found: LossCheck = answer[0]
        return found

    def _trainer(self) -> Trainer:
        subject = self.subject
        return Trainer(self.plan, subject.workload, self.rank, subject.data.seed, self.mesh, is_silent=True)

    def _plain_loop(self, precision: str = "") -> PlainLoop:
        subject = self.subject
        sends = "" if precision else bounds.sends(self.plan)
        return PlainLoop(subject.workload, self.plan, subject.data, self.rank.device, precision, sends)

    @property
    def _is_own(self) -> bool:
        return self.subject.workload.task is not None or self.subject.workload.whole is not None

    def _why_not(self) -> str:
        assert self.plain is not None
        return self.plain.why_not() if self._is_own else ""

    def _descend(self, trainer: Trainer) -> None:
        """Steps of plain descent beside the plain loop's; compare gradients on the way, and weights in the end."""
        first_lossy, used = bounds.first_lossy_step(self.plan), codec(self.plan.codec)
        num_steps = first_lossy if used.rank else NUM_STEPS
        wanted = self._plain_step(0)
        gatherer = Gatherer(trainer)
        descent = SGD([p for p in trainer.parameters() if p.requires_grad], lr=self.rate, foreach=False)
        watched = WatchedOptimizer(descent, lambda: self._compare_gradients(gatherer))
        trainer.optimizer = watched  # type: ignore[assignment]
        self._compare_loss(self._step(trainer, 0), wanted)
        watched.look = lambda: None
        for step in range(1, num_steps):
            self._plain_step(step)
            self._step(trainer, step)
        if not used.is_sparse:
            self._compare_weights(gatherer, num_steps)
        if used.rank:
            self._plain_step(num_steps, is_last=True)
            watched.look = lambda: self._compare_projections(gatherer)
            self._step(trainer, num_steps)

    def _plain_step(self, step: int, is_last: bool = False) -> float:
        """Work off a step of the plain loop on rank 0, which the others wait for; gradients stay for a comparison."""

        def work() -> float:
            assert self.plain is not None
            loss = self.plain.gradients(step)
            if step == 0:
                self.scale = self._scale(self.plain, loss)
                self.rate = self._rate(self.plain)
            if not is_last:
                self.plain.descend(self.rate)
            if self.nudged is not None:
                # Of the first step its gradients are there.
                if step:
                    self.nudged.gradients(step)
                self.nudged.descend(self.rate)
            return loss

        found: tuple[float, float] = self._from_first(lambda: (work(), self.rate))
        loss, self.rate = found
        return loss

    def _from_first(self, work: Callable[[], Any]) -> Any:
        """What rank 0 works out, while the others wait for longer than a collective would."""
        answer: list[Any] = [work() if self.rank.rank == 0 else None]
        self.num_waits += 1
        wait_for_first(f"{self.key}/{self.num_waits}", PLAIN_SECONDS)
        dist.broadcast_object_list(answer)
        return answer[0]

    def _rate(self, plain: PlainLoop) -> float:
        """A rate with which plain descent moves the weights by a small share."""
        weights = [weight.detach() for _, weight in plain.weights() if weight.grad is not None]
        gradients = [weight.grad for _, weight in plain.weights() if weight.grad is not None]
        sizes = [math.sqrt(sum(float(value.norm()) ** 2 for value in values)) for values in (weights, gradients)]
        return STEP_SHARE * sizes[0] / (sizes[1] or 1.0)

    def _scale(self, plain: PlainLoop, loss: float) -> bounds.Scale:
        gradients = {name: weight.grad for name, weight in plain.weights() if weight.grad is not None}
        square = sum(bounds.dot(gradient, gradient) for gradient in gradients.values())
        usual = math.sqrt(square / max(1, sum(gradient.numel() for gradient in gradients.values())))
        other = self._plain_loop("fp32") if self.plan.precision in MIXED else self.nudged
        if other is None:
            return bounds.Scale(usual=usual, rounding={})
        exact_loss = other.gradients(0)
        exact = {name: weight.grad for name, weight in other.weights() if weight.grad is not None}
        product = sum(bounds.dot(gradients[name], value) for name, value in exact.items())
        sizes = math.sqrt(square * sum(bounds.dot(value, value) for value in exact.values()))
        found = bounds.Scale(
            usual=usual,
            rounding={name: float((gradients[name] - value).norm()) for name, value in exact.items()},
            loss_rounding=abs(loss - exact_loss) / (abs(exact_loss) or 1.0),
            cosine_rounding=max(0.0, 1 - product / (sizes or 1.0)),
        )
        return found.at_least_usual(gradients)

    def _step(self, trainer: Trainer, step: int) -> float | None:
        """A step of the trainer; the loss on the ranks that have a replica's."""
        loss = taken_step(trainer, *self.subject.data.batch(step, self.plan.global_batch_size))
        return None if loss is None or trainer.place.tensor else float(loss)

    def _compare_loss(self, own: float | None, wanted: float) -> None:
        everyone: list[float | None] = [None] * self.rank.num_ranks
        dist.all_gather_object(everyone, own)
        losses = [loss for loss in everyone if loss is not None]
        if self.plain is not None:
            compare_loss(self.plan, sum(losses) / len(losses), wanted, self.scale, self.findings)

    def _compare_gradients(self, gatherer: Gatherer) -> None:
        gathered = gatherer.whole(lambda parameter: parameter.grad, trained=True)
        if self.plain is None:
            _go_through(gathered)
        else:
            compare_gradients(self.plan, self.plain, self.scale, gathered, self.findings)

    def _compare_projections(self, gatherer: Gatherer) -> None:
        gathered = gatherer.whole(lambda parameter: parameter.grad, trained=True)
        if self.plain is None:
            _go_through(gathered)
        else:
            compare_projections(self.plan, self.plain, self.scale, gathered, self.findings)

    def _compare_weights(self, gatherer: Gatherer, num_steps: int) -> None:
        gathered = gatherer.whole(lambda parameter: parameter.detach())
        if self.plain is None:
            _go_through(gathered)
        else:
            rounding = self.plain.distances(self.nudged) if self.nudged is not None else {}
            scale = replace(self.scale, weight_rounding=rounding)
            compare_weights(self.plan, self.plain, scale, self.rate, num_steps, gathered, self.findings)

    def _optimize(self, trainer: Trainer) -> None:
        """Steps of the plan's optimizer beside one written by hand, on every rank; then copies must be the same."""
        self.by_hand = AdamWByHand(trainer.named_parameters)
        own = trainer.optimizer
        trainer.optimizer = WatchedOptimizer(own, self.by_hand.see)  # type: ignore[assignment]
        for step in range(NUM_OPTIMIZER_STEPS):
            self._step(trainer, NUM_STEPS + step)
        trainer.optimizer = own
        self._compare_optimizers(trainer)

    def _compare_optimizers(self, trainer: Trainer) -> None:
        everyone = self._everyone((self.by_hand.compare(), fingerprints(trainer)))
        ratio, off, name = max(found for found, _ in everyone)
        self.findings.add(OPTIMIZER, name, off, off / ratio if ratio and math.isfinite(ratio) else 0.0)
        other = differing([own for _, own in everyone])
        self.findings.add(COPIES, other, 1.0 if other else 0.0, 0.0)

    def _resume(self, trainer: Trainer, folder: Path) -> Trainer:
        """Save, restore into another trainer, compare the bits of all that was saved, and take a step with it."""
        path = folder / ".check"
        if self.rank.rank == 0:
            # Of a check that was ended.
            shutil.rmtree(path, ignore_errors=True)
        save(path, Progress(step=0, model="", seed=0, global_batch_size=1), trainer)
        before = _state_bits(trainer)
        num_steps = trainer.num_steps
        del trainer
        gc.collect()
        resumed = self._trainer()
        (found,) = path.glob("step-*")
        restore(found, resumed)
        dist.barrier()
        if self.rank.rank == 0:
            shutil.rmtree(path, ignore_errors=True)
        after = _state_bits(resumed)
        others = [name for name, value in before.items() if after.get(name) != value]
        for names in self._everyone(others):
            self.findings.add(RESUMED, names[0] if names else "", float(bool(names)), 0.0)
        self.by_hand.go_on_with(resumed.named_parameters)
        own, resumed.num_steps = resumed.optimizer, num_steps
        resumed.optimizer = WatchedOptimizer(own, self.by_hand.see)  # type: ignore[assignment]
        self._step(resumed, num_steps)
        resumed.optimizer = own
        self._compare_optimizers(resumed)
        return resumed

    def _everyone(self, own: Any) -> list[Any]:
        everyone: list[Any] = [None] * self.rank.num_ranks
        dist.all_gather_object(everyone, own)
        return everyone


def _go_through(gathered: Iterator[object]) -> None:
    for _ in gathered:
        pass


def _state_bits(trainer: Trainer) -> dict[str, list[int]]:
    found = {}
    for name, value in state_of(trainer).items():
        parts = value.pieces.values() if isinstance(value, InPieces) else [own_part(value)]
        found[name] = [bits(part) for part in parts]
    return found
