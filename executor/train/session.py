"""A training in one launch, on one rank: built, begun or gone on with, measured on its way, exported."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from executor.observe.live_tensors import LiveTensors
from executor.rank_model import RankModel
from executor.run.checkpoint import check_progress, progress_of, read_progress
from executor.run.going_on import tracked_steps
from executor.run.log_values import log_line, log_values
from executor.run.measurement import LossCheck, Measurement
from executor.run.runner import PEAK_KINDS
from executor.run.session import NOT_CHECKED, Session, checks_of, opened
from executor.train.hf_weights import load_weights
from executor.train.job import TrainedPlan
from executor.train.loop import LOSSES, Loop
from executor.train.optimizers import Rates, optimizer_class, options_of
from executor.train.rates import rate_factor
from executor.train.samples import OfReplica, Share, sources_of
from executor.train.settings import TrainSettings
from planner.parts import PART_NAMES
from profiles.artifacts import validate
from profiles.errors import ToleranceError
from profiles.machines.counters import Watch
from profiles.machines.load import load_of
from profiles.ranks.rank import own_cores, report


def run_training(payload: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The entry of every rank: check the plan, unless the training goes on, and train by it.

    Rank 0 gives the measurement as JSON-able fields, in a list as `run_order` does.
    """
    settings = validate(payload["training"], TrainSettings, "the settings")
    with opened(payload) as session:
        kept = session.order.checkpoints
        is_new = kept is None or kept.start is None
        check = checks_of(session)[0] if settings.check and is_new else NOT_CHECKED
        if check.status == "failed":
            (candidate,) = session.candidates
            raise ToleranceError(f"plan {candidate.plan.id}: {check.reason}: nothing was trained")
        measured = train(session, settings, check)
        return [asdict(measured)] if session.rank.rank == 0 else None


def train(session: Session, settings: TrainSettings, check: LossCheck) -> Measurement:
    """Train by the session's plan; collective. What came of it, beside the `check` that was made before.

    Raises: InputError, PlanError, ToleranceError where the loss is no number, Stopped, RankFailure.
    """
    watch = Watch(own_cores())
    peak, is_cuda = Peak(session), session.order.device_kind == "cuda"
    with peak:
        loop = begun(session, settings, peak)
        first = loop.job.num_steps
        tracked = tracked_steps(loop.job.plan)
        loop.run(first + tracked - 1)
        peak.begin(loop.job.model)
        loop.run(first + tracked)
    peak.end()
    with watch:
        loop.run(loop.num_steps)
    own = loop.job.measured_seconds()
    loop.finish()
    if is_cuda:
        peak.end()
    if settings.export:
        loop.job.export(settings.export)
    loop.job.close()
    report(1.0, "done")
    return _measurement(session, loop, own, peak.peak_bytes, watch, check, first)


class Peak:
    """The memory of a rank's step, as the executor measures it: of live tensors on a CPU, by the allocator on CUDA."""

    def __init__(self, session: Session) -> None:
        self._live = LiveTensors() if session.order.device_kind == "cpu" else None
        self._entered = contextlib.ExitStack()
        self.peak_bytes = 0.0

    def __enter__(self) -> None:
        if self._live is not None:
            # Compiled optimizers compile nothing while tensors are counted, and will not have it.
            self._entered.enter_context(torch.compiler.set_stance("force_eager"))
            self._entered.enter_context(self._live)

    def __exit__(self, *error: object) -> None:
        self._entered.close()

    def begin(self, model: RankModel) -> None:
        """Count from here on."""
        if self._live is None:
            torch.cuda.reset_peak_memory_stats()
            return
        self._live.add(model.held_tensors)
        self._live.reset_peak()

    def end(self) -> None:
        """Take the peak."""
        self.peak_bytes = float(torch.cuda.max_memory_allocated() if self._live is None else self._live.peak_bytes)


def begun(session: Session, settings: TrainSettings, peak: Peak) -> Loop:
    """The loop before its first step, or where the newest checkpoint was taken."""
    order, file, workload = session.order, session.file, session.workload
    (candidate,) = session.candidates
    plan = candidate.plan
    num_steps = settings.num_steps(file)
    training, evaluated = sources_of(settings.data, workload, file.sequence_length, order.seed, num_steps)
    report(0.0, f"building {plan.id}")
    mesh = session.meshes.of(plan) if session.rank.num_ranks > 1 else None
    model = RankModel(plan, workload, session.rank, order.seed, mesh)
    job = TrainedPlan(candidate, workload, model, session.rank, order.seed, order.timeout_seconds)
    if job.scale is not None:
        job.scale.scale, job.scale.growth_interval = settings.loss_scale.first, settings.loss_scale.growth_interval
    is_kept = order.checkpoints is not None
    kind, options = optimizer_class(settings.optimizer, plan, keeps_checkpoints=is_kept)
    optimizer = job.optimizer(kind, options_of(settings.optimizer), **options)
    rates = Rates(optimizer, lambda step: rate_factor(settings.schedule, step, num_steps))
    start = None if order.checkpoints is None else order.checkpoints.start
    extra = None if start is None else _gone_on(session, job, optimizer.param_groups, start)
    if extra is None and settings.weights and workload.task is None:
        lacking = load_weights(Path(settings.weights), job)
        if lacking:
            report(0.0, "weights", notice=f"{lacking} weights are not in {settings.weights}: initialised at random")
    count = job.samples_per_step
    share = Share(size=plan.global_batch_size, first=job.replica * count, count=count)
    shown = Shown(session, num_steps, peak)
    return Loop(
        job=job,
        file=file,
        settings=settings,
        rates=rates,
        train=OfReplica(training, share),
        evaluated=evaluated,
        checkpoints=order.checkpoints,
        timeout_seconds=order.timeout_seconds,
        predicted_bytes=candidate.prediction.peak_bytes,
        say=shown,
        first_step=job.num_steps,
        losses_before=_losses_in(extra or {}),
    )


def _losses_in(extra: dict[str, Any]) -> tuple[float, ...]:
    """The losses that a checkpoint keeps, as far as it says so."""
    kept = extra.get(LOSSES)
    return tuple(loss for loss in kept if isinstance(loss, float)) if isinstance(kept, list) else ()


def _gone_on(session: Session, job: TrainedPlan, groups: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors, which are read."""
    found = read_progress(path)
    check_progress(path, found, progress_of(job.plan, session.workload, session.order.seed, found.step))
    # Rates and decays are what the settings say now, not what they said then.
    given = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    extra = job.go_on_from(path)
    for group, numbers in zip(groups, given, strict=True):
        group.update(numbers)
    return extra


class Shown:
    """Says the numbers of a step in the words of the log, and how far the training is."""

    def __init__(self, session: Session, num_steps: int, peak: Peak) -> None:
        self._session, self._num_steps, self._peak = session, num_steps, peak

    def __call__(self, values: dict[str, Any]) -> None:
        """Say the numbers of one step."""
        (candidate,) = self._session.candidates
        plan, step = candidate.plan, int(values["step"])
        fraction = min(1.0, step / self._num_steps)
        if "evaluation_loss" in values:
            line = f"{plan.id}  step: {step}  evaluation loss: {values['evaluation_loss']:.4f}"
            report(fraction, f"step {step}", line, {"plan": plan.id, **values})
            return
        memory = self._peak.peak_bytes
        seconds, loss = float(values["seconds"]), float(values["loss"])
        said = values | log_values(
            self._session.file, plan, candidate.prediction, seconds, step=step, loss=loss, memory_bytes=memory
        )
        report(fraction, f"step {step}, loss {loss:.4f}", log_line(said), said)


def _measurement(
    session: Session, loop: Loop, own: list[float], peak_bytes: float, watch: Watch, check: LossCheck, first: int
) -> Measurement:
    """The training's measurement, of all ranks."""
    everyone: list[Any] = [None] * session.rank.num_ranks
    dist.all_gather_object(everyone, (own, peak_bytes, watch.counted))
    seconds = tuple(max(step) for step in zip(*(each for each, _, _ in everyone), strict=False))
    tokens = loop.job.plan.global_batch_size * session.file.sequence_length
    return Measurement(
        num_warmup_steps=max(0, len(loop.losses) - len(seconds)),
        step_seconds=seconds,
        seconds=dict.fromkeys(PART_NAMES),
        peak_bytes=tuple(peak for _, peak, _ in everyone),
        peak_kind=PEAK_KINDS[session.order.device_kind],
        losses=tuple(loop.losses),
        loss_check=check,
        tokens_per_second=tokens * len(seconds) / sum(seconds),
        first_step=first,
        losses_before=loop.losses_before,
        load=load_of([counted for _, _, counted in everyone]),
        evaluations=tuple(loop.evaluations),
    )
