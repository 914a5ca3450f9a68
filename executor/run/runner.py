"""One plan through its stages in one process: memory, warm-up, timed blocks, a profiled step, and what came of them."""

from __future__ import annotations

import contextlib
import gc
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from executor.axes.loss_scale import scale_of
from executor.engines import ENGINES, Engine, Training, Trains
from executor.mesh import Meshes, groups_of
from executor.observe.attention import AttentionWatch, is_worth_watching
from executor.observe.device_memory import DeviceMemory, device_memory
from executor.observe.events import StepTrace
from executor.observe.kept_steps import KeptSteps
from executor.observe.live_tensors import LiveTensors
from executor.observe.tracing import Profiled, exchange_seconds, profiled, write_trace
from executor.run.batches import Data
from executor.run.checkpoint import (
    Checkpoints,
    Progress,
    check_progress,
    latest,
    progress_of,
    read_progress,
    restore,
)
from executor.run.faults import STOP, agree, diverged, explained, is_finite, stopped
from executor.run.going_on import tracked_steps, warmup_steps
from executor.run.known_losses import KnownLosses, losses_in
from executor.run.outcomes import Account, Outcome, account
from executor.run.reference import NUM_STEPS_OF_A_RUN, Checked, first_steps
from executor.run.saving import save
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.codecs.codec import FSDP_STAGES
from profiles.machines.counters import Watch
from profiles.machines.stacks import THIS_PROGRAM
from profiles.ranks.rank import TIMEOUT_SECONDS, Rank, own_cores
from profiles.workloads.workload import Workload

# Generations of objects.
YOUNG = 1
PEAK_KINDS = {"cpu": "live tensors", "cuda": "torch.cuda.max_memory_allocated"}


class Runner:
    """A plan being run on this rank; all ranks call the same methods in the same order.

    A silent one is checked in steps of its own, in which nothing draws random numbers, before it trains.
    """

    def __init__(
        self,
        plan: Plan,
        workload: Workload,
        rank: Rank,
        samples: Data,
        meshes: Meshes,
        checkpoints: Checkpoints | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        predicted_bytes: float = 0.0,
        trace_folder: Path | None = None,
        is_silent: bool = False,
        engine: Engine = ENGINES[THIS_PROGRAM],
    ) -> None:
        self.plan, self.workload, self.rank, self.samples = plan, workload, rank, samples
        self.engine = engine
        self.checkpoints, self.first_step = checkpoints, 0
        self.mesh = meshes.of(plan)
        self.timeout_seconds, self.predicted_bytes = timeout_seconds, predicted_bytes
        self.trace_folder, self.is_silent = trace_folder, is_silent
        self.checked = Checked()
        self.num_steps, self.steps = 0, KeptSteps()
        self._latest: Tensor | None = None
        self._losses, self._unread = array("d"), list[Tensor]()
        self.losses_before: tuple[float, ...] = ()
        self.known = KnownLosses()
        self.peak_bytes, self.device_memory = 0.0, DeviceMemory()
        self.num_warmup_steps = self.num_timed_steps = 0
        self.watch = Watch(own_cores())

    def prepare(self, num_warmup_steps: int, num_steps: int = 1) -> None:
        """Build the model, measure memory over the first steps, and step until things are as they will stay.

        A run that goes on has so many timed steps, and before them so many untimed ones, as are left to its end.
        """
        start = None if self.checkpoints is None else self.checkpoints.start
        tracked, self.num_warmup_steps = tracked_steps(self.plan), warmup_steps(self.plan, num_warmup_steps)
        left = self.num_warmup_steps + num_steps - (0 if start is None else read_progress(start).step)
        self.num_timed_steps = min(num_steps, max(1, left - self.num_warmup_steps))
        if start is not None:
            self.num_warmup_steps = max(0, left - self.num_timed_steps)
            tracked = min(tracked, self.num_warmup_steps)
        if self.is_silent and start is None:
            self._check_in_silence()
        if self.rank.device.type == "cuda":
            torch.cuda.empty_cache()
            self._build_and_step(tracked - 1)
            torch.cuda.reset_peak_memory_stats()
            if tracked:
                self._step()
            self.device_memory = device_memory(self.rank.device)
            self.peak_bytes = self.device_memory.allocated_bytes
        else:
            with LiveTensors() as live:
                self._build_and_step(tracked - 1)
                live.add(self.trainer.held_tensors)
                live.reset_peak()
                if tracked:
                    self._step()
            self.peak_bytes = float(live.peak_bytes)
        for _ in range(self.num_warmup_steps - tracked):
            self._step()

    def run_block(self, num_steps: int) -> None:
        """Timed steps, all ranks starting together: of stages each, of others the first.

        A stage's waits are counted from when all could have started, so that it needs that barrier, which stands before
        the clock starts. Others meet in their exchange at every step's end; to meet once more took 1 % of a short one.
        A rank that came late from its batch is the others' exchange there, as it is in a training.
        """
        # A collection in the middle of a step would be timed with it. What steps leave is young: a search of all that
        # the libraries have made would take as long as some steps.
        gc.collect(YOUNG)
        gc.disable()
        try:
            with self.watch:
                for number in range(num_steps):
                    self.steps.add(self._step(wait=number == 0 or self.plan.pipeline_parallel > 1))
        finally:
            gc.enable()
        if not is_finite(self._latest):
            raise diverged(self.plan, self.num_steps_done, self.latest_loss())
        self._read_losses()

    @property
    def num_steps_done(self) -> int:
        """Steps taken since the first of all, those before a checkpoint included."""
        return self.first_step + self.num_steps

    def latest_loss(self) -> float | None:
        """The newest loss as rank 0's log shows it: this replica's where this rank has it."""
        return None if self._latest is None else float(self._latest)

    def account(self) -> Account | None:
        """What all ranks have to tell, on rank 0; collective. The model is gone afterwards."""
        return account(
            self.plan, self.finish(), groups_of(self.plan, self.mesh).stages, self.rank.device, self.first_step
        )

    def finish(self) -> Outcome:
        """What this rank has to tell; the model is gone afterwards."""
        self._read_losses()
        losses = self._losses[:]
        # Steps that are taken to be looked at are none of the training.
        self.checkpoints = None
        if self.trace_folder is not None:
            write_trace(self.trace_folder, self.plan, self.rank, self._profiled())
        exchanges, attention = self._exchange_seconds(), self._attention()
        place = self.trainer.place
        del self.trainer
        gc.collect()
        return Outcome(
            place=place,
            steps=self.steps,
            exchange_seconds=exchanges,
            losses=losses,
            peak_bytes=self.peak_bytes,
            counted=self.watch.counted,
            checked=self.checked,
            device_memory=self.device_memory,
            attention=attention,
        )

    @property
    def losses(self) -> Sequence[float | None]:
        """The losses of this rank's steps so far, None where it computes none."""
        self._read_losses()
        return [None] * self.num_steps if self._latest is None else self._losses

    def _read_losses(self) -> None:
        """Take the losses off the device, which would hold up the steps they are of."""
        self._losses.extend(float(loss) for loss in self._unread)
        self._unread.clear()

    def _check_in_silence(self) -> None:
        """The first steps without random numbers, by a trainer that is then gone."""
        trainer = self._built(is_silent=True)
        with self._explained():
            self.checked = first_steps(trainer, self.samples, NUM_STEPS_OF_A_RUN)
        del trainer
        gc.collect()

    def _build_and_step(self, num_steps: int) -> None:
        self.trainer = self._built()
        if self.checkpoints is not None and self.checkpoints.start is not None:
            self._go_on(self.checkpoints.start)
        for _ in range(num_steps):
            self._step()

    def _built(self, *, is_silent: bool = False) -> Trains:
        make = self.engine.maker()
        return make(Training(self.plan, self.workload, self.rank, self.samples.seed, self.mesh, is_silent))

    def _go_on(self, path: Path) -> None:
        """Restore a checkpoint."""
        assert isinstance(self.trainer, Trainer), "checkpoints need this program's own trainer"
        found = read_progress(path)
        check_progress(path, found, self._progress(found.step))
        restore(path, self.trainer)
        self.losses_before = losses_in(path, found.step)
        self.known = KnownLosses(self.losses_before)
        self.first_step = self.trainer.num_steps = found.step
        if self.trainer.scale is not None:
            self.trainer.scale.go_on_with(found.scale)

    def _progress(self, step: int) -> Progress:
        found = progress_of(self.plan, self.workload, self.samples.seed, step)
        return replace(found, scale=scale_of(self.trainer.scale))

    def _step(self, wait: bool = False) -> StepTrace:
        batch = self.samples.batch(self.num_steps_done, self.plan.global_batch_size)
        if wait:
            with self._explained(between_steps=True):
                dist.barrier()
        is_checked = self.num_steps_done < NUM_STEPS_OF_A_RUN and not self.is_silent
        self.trainer.measures_norm = is_checked
        with self._explained():
            loss, trace = self.trainer.step(*batch)
        self.num_steps, self._latest = self.num_steps + 1, loss
        if loss is not None:
            self._unread.append(loss)
        if is_checked:
            self._note_check(loss)
        if self.checkpoints is not None:
            with self._explained(between_steps=True):
                self._check_in(self.checkpoints)
        return trace

    def _note_check(self, loss: Tensor | None) -> None:
        losses, norms = self.checked.losses, self.checked.norms
        value = None if loss is None else float(loss)
        self.checked = Checked(losses=(*losses, value), norms=(*norms, self.trainer.gradient_norm))

    def _explained(self, *, between_steps: bool = False) -> contextlib.AbstractContextManager[None]:
        return explained(
            self.plan,
            self.rank,
            self.num_steps_done + 1,
            self.timeout_seconds,
            self.predicted_bytes,
            between_steps=between_steps,
        )

    def _check_in(self, checkpoints: Checkpoints) -> None:
        """After a step: save where that is due, or where a rank is asked to stop; never what is no number."""
        done, folder = self.num_steps_done, Path(checkpoints.folder)
        is_stopping, has_diverged = agree(self.rank.device, STOP.has_come, not is_finite(self._latest))
        if has_diverged:
            raise diverged(self.plan, done, self.latest_loss(), latest(folder))
        if is_stopping or checkpoints.is_due(done):
            assert isinstance(self.trainer, Trainer), "checkpoints need this program's own trainer"
            kept = self.known.with_those_of(self.losses, self.trainer.place)
            path = save(folder, self._progress(done), self.trainer, kept)
            if is_stopping:
                raise stopped(self.plan, done, path)

    def _exchange_seconds(self) -> dict[str, float] | None:
        """Seconds that one step spends in collectives within its passes, from one more step under the profiler.

        Ignores: on CUDA, where collectives run beside the host's calls, nothing is told; nor of another engine's.
        """
        plan = self.plan
        if not self.engine.is_own:
            return None
        degree = max(plan.tensor_parallel, plan.context_parallel, plan.expert_parallel)
        if self.rank.device.type != "cpu" or (degree == 1 and plan.zero_stage not in FSDP_STAGES):
            return None
        return exchange_seconds(self._profiled())

    def _attention(self) -> tuple[str, ...]:
        """The kernels that computed attention in one more step, where there are several and no step is kept."""
        if not is_worth_watching(self.rank.device) or self.checkpoints is not None:
            return ()
        with AttentionWatch() as watch:
            self._step(wait=True)
        return watch.kernels

    def _profiled(self) -> Profiled:
        return profiled(lambda: self._step(wait=True), self.rank.device)
