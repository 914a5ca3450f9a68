"""From a plan file and options to a checked order: whatever can be refused is refused here, before a rank starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from executor.engines import Engine, engines_of
from executor.legality import check_plan, choose
from executor.run.batches import data_name, load_data
from executor.run.checkpoint import Checkpoints, check_progress, latest, progress_of, read_progress
from executor.run.checkpoint_choice import newest_whole
from executor.run.checks import check_data, check_devices, check_precision, check_task, facts_of_workload
from executor.run.going_on import end_step
from executor.run.owner import check_free
from executor.run.session import Order
from executor.run.subject import load_subject
from executor.train.prepare import check_modules, check_training, data_for_check, with_weights
from executor.train.settings import TrainSettings, flat, read_settings
from planner.plans import Plan
from planner.prediction import PlanFile
from profiles import artifacts
from profiles.errors import InputError
from profiles.files import ensure_folder
from profiles.machines.fingerprint import current_device_kind, current_fingerprint
from profiles.machines.load import MachineLoad, look_before
from profiles.machines.profile import Fingerprint
from profiles.machines.stacks import THIS_PROGRAM
from profiles.ranks.environment import check_room, is_main_process
from profiles.ranks.rank import TIMEOUT_SECONDS
from profiles.ranks.stores import open_to
from profiles.workloads.trust import is_factory
from profiles.workloads.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A checked order and what is to be said about it; `here` is this machine before a rank stays on one core of it."""

    file: PlanFile
    order: Order
    data_name: str
    oversubscribed: bool
    notes: tuple[str, ...]
    started: str
    here: Fingerprint
    load_before: MachineLoad | None = None
    max_restarts: int = 0
    trusted: tuple[str, ...] = ()
    training: TrainSettings | None = None

    @property
    def entry(self) -> str:
        """What every rank runs."""
        return "executor.run.session:run_order" if self.training is None else "executor.train.session:run_training"

    @property
    def num_runs(self) -> int:
        """How many runs there are: every plan by every engine."""
        return len(self.order.chosen) * len(self.order.engines)

    @property
    def sinks(self) -> tuple[str, ...]:
        """Where else numbers go than to the log."""
        return () if self.training is None else self.training.log.sinks

    @property
    def settings(self) -> dict[str, Any]:
        """What a sink is told of a training: the best plan, and its settings by their path."""
        plan = self.file.candidates[self.order.chosen[0]].plan
        return {"plan": plan.id} | ({} if self.training is None else flat(self.training))

    @property
    def payload(self) -> dict[str, Any]:
        """What the ranks are given, JSON-able."""
        training = None if self.training is None else asdict(self.training)
        order = asdict(self.order)
        return {"file": asdict(self.file), "order": order, "trusted": list(self.trusted), "training": training}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a user may ask of a run, as the options of `execute` are called; `trusted` modules may build its model."""

    steps: int = 20
    warmup: int = 3
    top: int = 1
    with_baseline: bool = False
    data: Path | None = None
    seed: int = 0
    oversubscribe: bool = False
    checkpoints: Checkpoints | None = None
    max_restarts: int = 0
    timeout: float = TIMEOUT_SECONDS
    trace: Path | None = None
    trusted: tuple[str, ...] = ()
    runs: Path | None = None
    train: Path | None = None
    engines: tuple[str, ...] = ()


def prepare(plan_path: Path, options: RunOptions) -> Job:
    """Read and check everything.

    Raises: ArtifactError, PlanError, InputError, EnvironmentFailure.
    """
    file = artifacts.read(plan_path, "plan", PlanFile)
    training = None if options.train is None else read_settings(options.train)
    if training is not None:
        # Before anything imports what they name.
        check_modules(training.data, options.trusted)
        file = with_weights(file, training)
    engines = engines_of(options.engines)
    chosen, notes = choose(file, options.top, options.with_baseline, options.engines)
    device_kind, keeps = current_device_kind(), options.checkpoints is not None
    if keeps and len(chosen) > 1:
        raise InputError(f"--checkpoint: {len(chosen)} plans are asked for, but checkpoints are for one: give --top 1")
    path = _data_path(options.data) if training is None else data_for_check(training.data)
    workload = load_subject(file, options.trusted, path, str(plan_path))
    for index in chosen:
        notes += _checked(file.candidates[index].plan, file, workload, device_kind, engines)
    plan = file.candidates[chosen[0]].plan
    end = training.num_steps(file) if training else end_step(plan, options.warmup, options.steps)
    if training is None:
        check_data(file, workload, path)
        load_data(path, workload, file.sequence_length, options.seed)
    else:
        check_training(training, file, plan, workload, options.seed, keeps=keeps)
    notes += _kept(options, plan, workload, end)
    oversubscribed = check_devices(file.num_devices, device_kind, options.oversubscribe, _elsewhere(file, device_kind))
    check_room(file.num_devices, device_kind)
    load_before, warnings = look_before(file.num_devices)
    notes += [*_machine_notes(file, device_kind, oversubscribed), *filter(None, [open_to()]), *warnings]
    return Job(
        file=file,
        order=_order(options, chosen, path, device_kind, end),
        max_restarts=options.max_restarts,
        trusted=options.trusted,
        data_name=data_name(training.data.train if training else str(options.data or ""), workload),
        oversubscribed=oversubscribed,
        notes=tuple(notes),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        here=current_fingerprint(device_kind),
        load_before=load_before,
        training=training,
    )


def _order(options: RunOptions, chosen: tuple[int, ...], data: str, device_kind: str, end: int) -> Order:
    return Order(
        chosen=chosen,
        num_steps=options.steps,
        num_warmup_steps=options.warmup,
        seed=options.seed,
        data_file=data,
        device_kind=device_kind,
        checkpoints=options.checkpoints,
        timeout_seconds=options.timeout,
        end_step=end,
        trace_folder="" if options.trace is None else str(options.trace.absolute()),
        engines=tuple(dict.fromkeys(options.engines)) or (THIS_PROGRAM,),
    )


def _kept(options: RunOptions, plan: Plan, workload: Workload, end: int) -> list[str]:
    """Make the folders that a run writes into; where it goes on from."""
    kept = options.checkpoints
    for folder in (options.runs, options.trace, Path(kept.folder) if kept else None):
        if folder is not None:
            ensure_folder(folder)
    return [] if kept is None else _resumed(kept, plan, workload, options.seed, end)


def _checked(plan: Plan, file: PlanFile, workload: Workload, device_kind: str, engines: Sequence[Engine]) -> list[str]:
    """Hold a plan against its model, this machine and what is to run it; notes on it."""
    for engine in engines:
        check_plan(plan, file, facts_of_workload(workload), engine.refusal)
    notes = check_task(plan, workload, device_kind)
    check_precision(plan, device_kind)
    return notes


def _data_path(data: Path | None) -> str:
    """What --data names: a file by its whole path, or a function as it is; "" where it is not given."""
    if data is None:
        return ""
    return str(data) if is_factory(str(data)) else str(data.absolute())


def _resumed(checkpoints: Checkpoints, plan: Plan, workload: Workload, seed: int, end: int) -> list[str]:
    """Where a run that is to go on does so from; one that starts anew must have the folder for itself.

    Raises: ArtifactError for checkpoints that cannot be read, InputError for one of another run or of its last step,
    EnvironmentFailure where another run uses the folder.
    """
    folder = Path(checkpoints.folder)
    if is_main_process():
        check_free(folder)
    path = latest(folder)
    if not checkpoints.resume:
        # Its ranks, were they started again, would go on from the other run's.
        if path is not None:
            raise InputError(f"--checkpoint {checkpoints.folder} has {path.name}: give --resume, or another folder")
        return []
    if path is None:
        return [f"no checkpoint in {checkpoints.folder} yet: starting from the first step"]
    # The ranks read all bytes of it, and take the one before where these are damaged.
    path = newest_whole(folder, is_read=False).path
    assert path is not None
    found = read_progress(path)
    check_progress(path, found, progress_of(plan, workload, seed, found.step))
    if found.step >= end:
        raise InputError(f"{path} is from step {found.step}, but the run ends with step {end}: ask for more steps")
    return [f"resuming from step {found.step}, {path}"]


def _machine_notes(file: PlanFile, device_kind: str, oversubscribed: bool) -> list[str]:
    shared = [f"{file.num_devices} ranks share this machine's cores: step times are not judged"]
    return (shared if oversubscribed else []) + _planned_for(file, device_kind)


def _elsewhere(file: PlanFile, device_kind: str) -> str:
    """The devices that a plan was made for, "" where they may be this machine's."""
    is_of_a_sheet = device_kind != file.machine_device_kind or not file.machine_fingerprint
    return f"{file.machine_name} x {file.num_devices}" if is_of_a_sheet else ""


def _planned_for(file: PlanFile, device_kind: str) -> list[str]:
    if device_kind != file.machine_device_kind:
        return [f"planned for {file.machine_name} ({file.machine_device_kind}), run on {device_kind}: not comparable"]
    if not file.machine_fingerprint:
        return [f"planned for {file.machine_name} from its datasheet, not from a measurement of this machine"]
    if file.machine_fingerprint != current_fingerprint(device_kind).digest:
        return ["planned on another machine or with other versions: run `profile machine` here and plan again"]
    return []


def is_baseline(file: PlanFile, plan: Plan) -> bool:
    """Whether `plan` is the file's baseline."""
    return file.baseline >= 0 and file.candidates[file.baseline].plan == plan
