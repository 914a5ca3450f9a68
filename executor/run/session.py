"""All plans of one launch, on one rank: in turns, so that a slow moment of the machine falls on all plans alike."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from executor.engines import Engine, engine
from executor.mesh import Meshes
from executor.observe.time_parts import without_messages
from executor.run.batches import Data, load_data
from executor.run.beside import BLOCK_STEPS
from executor.run.check_plans import Checks, both
from executor.run.checkpoint import Checkpoints
from executor.run.faults import STOP
from executor.run.going_on import begun, end_step
from executor.run.log_values import log_line, log_values, scale_values
from executor.run.measurement import LossCheck, Measurement
from executor.run.outcomes import Account
from executor.run.reference import (
    NUM_STEPS_OF_A_RUN,
    NUM_STEPS_OF_AN_ENGINE,
    Reference,
    alike,
    check_losses,
    references_of,
)
from executor.run.runner import PEAK_KINDS, Runner
from executor.run.subject import load_subject
from executor.run.turns import groups_in_turns
from planner.prediction import Candidate, PlanFile
from profiles import artifacts
from profiles.machines.load import load_of
from profiles.machines.stacks import THIS_PROGRAM
from profiles.ranks.devices import gpu_settings
from profiles.ranks.rank import TIMEOUT_SECONDS, Rank, join_group, report, wait_for_first
from profiles.workloads.foreign_code import calling_foreign_code
from profiles.workloads.workload import Workload

# What one device says of each precision and size of micro-batches.
References = dict[str, dict[int, Reference]]
# One device works off the reference while the others wait for it.
REFERENCE_SECONDS = 3600.0
OF_LOSSES = LossCheck(status="skipped", reason="only losses are compared", tolerance_fraction=0.0)
NOT_CHECKED = LossCheck(status="skipped", reason="training was not checked before it started", tolerance_fraction=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a launch is asked to do; `chosen` are indices of the plan file's candidates.

    `checkpoints` are of one plan alone; ranks that are started again go on from the newest. Into `trace_folder`,
    where there is one, goes a profiled step of each. With `only_checks`, plans are checked and not run. A run with
    checkpoints ends after `end_step` steps in all. Each plan is run by every one of `engines`, in turns.
    """

    __pydantic_config__ = artifacts.STRICT

    chosen: tuple[int, ...]
    num_steps: int
    num_warmup_steps: int
    seed: int
    data_file: str
    device_kind: str
    checkpoints: Checkpoints | None = None
    timeout_seconds: float = TIMEOUT_SECONDS
    trace_folder: str = ""
    only_checks: bool = False
    end_step: int = 0
    engines: tuple[str, ...] = (THIS_PROGRAM,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What all plans of the launch share on this rank."""

    file: PlanFile
    order: Order
    workload: Workload
    samples: Data
    rank: Rank
    meshes: Meshes

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates to run, in their order."""
        return [self.file.candidates[index] for index in self.order.chosen]

    @property
    def runs(self) -> list[tuple[Candidate, Engine]]:
        """What runs: every plan by every engine."""
        return [(candidate, engine(name)) for candidate in self.candidates for name in self.order.engines]


def run_order(payload: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The entry of every rank: run the order on the plan file.

    Rank 0 gives the measurements, or where these alone are wanted the checks, as JSON-able fields.
    """
    with opened(payload) as session:
        if session.order.only_checks:
            found: Sequence[Any] = checks_of(session)
        else:
            checks = _checks_of_runs(session)
            found = _run_all(session, _references(session), checks)
        return [asdict(one) for one in found] if session.rank.rank == 0 else None


@contextlib.contextmanager
def opened(payload: dict[str, Any]) -> Iterator[Session]:
    """This rank's place in a launch, joined until the block has ended, with what all its plans share.

    Ranks that were started again go on from the newest checkpoint that is whole.
    """
    file = artifacts.validate(payload["file"], PlanFile, "the plan")
    order = artifacts.validate(payload["order"], Order, "the order")
    with join_group(order.device_kind, order.timeout_seconds) as rank:
        if order.checkpoints is not None:
            STOP.listen()
            order = replace(order, checkpoints=begun(order.checkpoints, order.end_step))
        workload = load_subject(file, payload["trusted"], order.data_file)
        session = Session(
            file=file,
            order=order,
            workload=workload,
            samples=load_data(order.data_file, workload, file.sequence_length, order.seed),
            rank=rank,
            meshes=Meshes(order.device_kind, order.timeout_seconds),
        )
        with calling_foreign_code(workload.spec, f"{workload.spec.title} does not run"):
            yield session


def checks_of(session: Session) -> list[LossCheck]:
    """The check of each plan, before any is run."""
    kept = session.order.checkpoints
    checks = Checks(
        workload=session.workload,
        data=session.samples,
        num_parameters=session.file.num_parameters,
        rank=session.rank,
        meshes=session.meshes,
        folder=None if kept is None else Path(kept.folder),
        timeout_seconds=session.order.timeout_seconds,
    )
    return checks.of([candidate.plan for candidate in session.candidates])


def _checks_of_runs(session: Session) -> list[LossCheck]:
    """The check of each run; of another engine only losses are compared, once it has run."""
    if not any(used.is_own for _, used in session.runs):
        return [OF_LOSSES] * len(session.runs)
    found = checks_of(session)
    by_plan = dict(zip(session.order.chosen, found, strict=True))
    return [
        by_plan[index] if engine(name).is_own else OF_LOSSES
        for index in session.order.chosen
        for name in session.order.engines
    ]


def _references(session: Session) -> References:
    """What one device says of the first steps; rank 0 works it out while the others wait."""
    references: References = {}
    order = session.order
    plans = [candidate.plan for candidate in session.candidates]
    num_steps = NUM_STEPS_OF_A_RUN
    if not all(used.is_own for _, used in session.runs):
        ends = [end_step(plan, order.num_warmup_steps, order.num_steps) for plan in plans]
        num_steps = min(NUM_STEPS_OF_AN_ENGINE, *ends)
    for precision in sorted({plan.precision for plan in plans}):
        same = [plan for plan in plans if plan.precision == precision]
        if session.rank.rank == 0:
            which = "first loss" if num_steps == 1 else f"first {num_steps} losses"
            report(0.0, f"the {which} in {precision} on one device")
            references[precision] = references_of(
                session.workload,
                same,
                session.samples,
                session.rank,
                session.file.num_parameters,
                num_steps,
            )
    wait_for_first("references", REFERENCE_SECONDS)
    everyone: list[References] = [references]
    dist.broadcast_object_list(everyone)
    return everyone[0]


def _run_all(session: Session, references: References, checks: Sequence[LossCheck]) -> list[Measurement]:
    """Run every plan; the measurements, which rank 0 alone has."""
    measurements: list[Measurement | None] = []
    for group in groups_in_turns(session.runs, session.order.device_kind):
        runners = [
            Runner(
                candidate.plan,
                session.workload,
                session.rank,
                session.samples,
                session.meshes,
                session.order.checkpoints,
                session.order.timeout_seconds,
                candidate.prediction.peak_bytes,
                Path(session.order.trace_folder) if session.order.trace_folder else None,
                references[candidate.plan.precision][candidate.plan.micro_batch_size].is_silent,
                used,
            )
            for candidate, used in group
        ]
        for index, runner in enumerate(runners):
            done = len(measurements) / len(session.runs)
            report(done + 0.4 * index / len(session.runs), f"warming up {runner.plan.id}")
            runner.prepare(session.order.num_warmup_steps, session.order.num_steps)
        _run_in_turns(session, runners, len(measurements))
        for runner in runners:
            measurements.append(_measurement(session, runner, references, checks[len(measurements)]))
        del runners, runner
        gc.collect()
    report(1.0, "done")
    return [one for one in measurements if one is not None]


def _run_in_turns(session: Session, runners: Sequence[Runner], num_done: int) -> None:
    predictions = {candidate.plan.id: candidate.prediction for candidate in session.candidates}
    # A run that goes on from a checkpoint has fewer left.
    num_steps = min(runner.num_timed_steps for runner in runners)
    for start in range(0, num_steps, BLOCK_STEPS):
        block = min(BLOCK_STEPS, num_steps - start)
        for index, runner in enumerate(runners):
            runner.run_block(block)
            share = (start + block * (index + 1) / len(runners)) / num_steps
            fraction = (num_done + len(runners) * (0.4 + 0.6 * share)) / len(session.runs)
            seconds = sum(runner.steps.seconds[-block:]) / block
            values = log_values(
                session.file, runner.plan, predictions[runner.plan.id], seconds, step=runner.num_steps_done,
                loss=runner.latest_loss(), memory_bytes=runner.peak_bytes,
            ) | scale_values(runner.trainer.scale)  # fmt: skip
            if not runner.engine.is_own:
                values["plan"] = f"{runner.plan.id} by {runner.engine.name}"
            report(min(fraction, 1.0), runner.plan.id, log_line(values), values)


def _measurement(session: Session, runner: Runner, references: References, check: LossCheck) -> Measurement | None:
    """The plan's measurement from all ranks' outcomes, on rank 0."""
    found = runner.account()
    if found is None:
        return None
    reference = references[runner.plan.precision][runner.plan.micro_batch_size]
    # Of another engine all losses that there are references of, unless it drew random numbers in these steps.
    losses = found.checked_losses if runner.engine.is_own or runner.is_silent else found.losses
    reference, losses = alike(reference, losses, runner.checked.norms)
    own = check_losses(runner.plan, losses, runner.checked.norms, reference, runner.first_step)
    tokens = runner.plan.global_batch_size * session.file.sequence_length
    return Measurement(
        num_warmup_steps=runner.num_warmup_steps,
        step_seconds=found.step_seconds,
        seconds=found.seconds if runner.engine.is_own else without_messages(found.seconds),
        peak_bytes=found.peak_bytes,
        peak_kind=PEAK_KINDS[session.order.device_kind],
        losses=found.losses,
        loss_check=both(check, own),
        first_step=runner.first_step,
        losses_before=runner.losses_before,
        tokens_per_second=tokens * len(found.step_seconds) / sum(found.step_seconds),
        spans=found.spans,
        load=load_of(found.counted),
        **_of_gpus(session.rank, found),
    )


def _of_gpus(rank: Rank, found: Account) -> dict[str, Any]:
    """What is told of ranks on GPUs alone."""
    if rank.device.type != "cuda":
        return {}
    return {
        "reserved_bytes": tuple(memory.reserved_bytes for memory in found.device_memory),
        "in_use_bytes": tuple(memory.in_use_bytes for memory in found.device_memory),
        "attention": found.attention,
        "settings": gpu_settings(rank.device),
    }
