"""From a plan file and options to a checked order: whatever can be refused is refused here, before a rank starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from executor.legality import check_plan, choose
from executor.run.batches import data_name, load_data
from executor.run.checkpoint import Checkpoints, check_progress, latest, progress_of, read_progress
from executor.run.checkpoint_choice import newest_whole
from executor.run.checks import check_data, check_devices, check_precision, check_task, facts_of_workload
from executor.run.going_on import end_step, warmup_steps
from executor.run.owner import check_free
from executor.run.session import Order
from executor.run.subject import load_subject
from planner.plans import Plan
from planner.prediction import PlanFile
from profiles import artifacts
from profiles.errors import InputError
from profiles.files import ensure_folder
from profiles.machines.fingerprint import current_device_kind, current_fingerprint
from profiles.machines.load import MachineLoad, look_before
from profiles.ranks.environment import check_room, is_main_process
from profiles.ranks.rank import TIMEOUT_SECONDS
from profiles.ranks.stores import open_to
from profiles.workloads.trust import is_factory
from profiles.workloads.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A checked order and what is to be said about it."""

    file: PlanFile
    order: Order
    data_name: str
    oversubscribed: bool
    notes: tuple[str, ...]
    started: str
    load_before: MachineLoad | None = None
    max_restarts: int = 0
    trusted: tuple[str, ...] = ()

    @property
    def payload(self) -> dict[str, Any]:
        """What the ranks are given, JSON-able."""
        return {"file": asdict(self.file), "order": asdict(self.order), "trusted": list(self.trusted)}


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


def prepare(plan_path: Path, options: RunOptions) -> Job:
    """Read and check everything.

    Raises: ArtifactError, PlanError, InputError, EnvironmentFailure.
    """
    file = artifacts.read(plan_path, "plan", PlanFile)
    chosen, notes = choose(file, options.top, options.with_baseline)
    device_kind, checkpoints, data = current_device_kind(), options.checkpoints, options.data
    if checkpoints is not None and len(chosen) > 1:
        raise InputError(f"--checkpoint: {len(chosen)} plans are asked for, checkpoints are kept of one: give --top 1")
    path = _data_path(data)
    workload = load_subject(file, options.trusted, path, str(plan_path))
    for index in chosen:
        check_plan(file.candidates[index].plan, file, facts_of_workload(workload))
        notes += check_task(file.candidates[index].plan, workload, device_kind)
        check_precision(file.candidates[index].plan, device_kind)
    check_data(file, workload, path)
    for folder in (options.runs, options.trace, Path(checkpoints.folder) if checkpoints else None):
        if folder is not None:
            ensure_folder(folder)
    if checkpoints is not None:
        notes += _resumed(checkpoints, file.candidates[chosen[0]].plan, workload, options)
    load_data(path, workload, file.sequence_length, options.seed)
    oversubscribed = check_devices(file.num_devices, device_kind, options.oversubscribe)
    check_room(file.num_devices, device_kind)
    if oversubscribed:
        notes.append(f"{file.num_devices} ranks share this machine's cores: step times are not judged")
    notes += [*_machine_notes(file, device_kind), *filter(None, [open_to()])]
    load_before, warnings = look_before(file.num_devices)
    return Job(
        file=file,
        order=Order(
            chosen=chosen,
            num_steps=options.steps,
            num_warmup_steps=options.warmup,
            seed=options.seed,
            data_file=path,
            device_kind=device_kind,
            checkpoints=checkpoints,
            timeout_seconds=options.timeout,
            trace_folder="" if options.trace is None else str(options.trace.absolute()),
        ),
        max_restarts=options.max_restarts,
        trusted=options.trusted,
        data_name=data_name("" if data is None else str(data), workload),
        oversubscribed=oversubscribed,
        notes=(*notes, *warnings),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        load_before=load_before,
    )


def _data_path(data: Path | None) -> str:
    """What --data names: a file by its whole path, or a function as it is; "" where it is not given."""
    if data is None:
        return ""
    return str(data) if is_factory(str(data)) else str(data.absolute())


def _resumed(checkpoints: Checkpoints, plan: Plan, workload: Workload, options: RunOptions) -> list[str]:
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
    check_progress(path, found, progress_of(plan, workload, options.seed, found.step))
    if found.step >= end_step(plan, options.warmup, options.steps):
        raise InputError(
            f"{path} is of step {found.step}: --steps {options.steps} after {warmup_steps(plan, options.warmup)} of "
            "warm-up have been taken; ask for more steps"
        )
    return [f"going on from step {found.step}, {path}"]


def _machine_notes(file: PlanFile, device_kind: str) -> list[str]:
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
