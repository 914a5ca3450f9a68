"""`execute --compress`: checks a plan file's recipes, runs them on real ranks, writes what came of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from executor.compress.export_onnx import check_can_export
from executor.compress.results import CompressionFile, CompressionResult
from executor.compress.runtimes import chosen_runtimes
from executor.compress.train_one import CompressionOrder
from executor.legality import check_plan
from executor.run.batches import data_name, load_samples
from executor.run.checks import check_data, check_devices, facts_of_workload
from executor.run.prepare import RunOptions
from executor.run.run_file import environment
from planner.compression.recipes import CompressionChoice, cannot_train, recipe
from planner.prediction import PlanFile
from profiles import artifacts
from profiles.errors import EnvironmentFailure, InputError, PlanError
from profiles.files import ensure_folder
from profiles.machines.fingerprint import current_device_kind, current_fingerprint
from profiles.machines.load import MachineLoad, causes, look_before
from profiles.ranks.environment import check_room, in_job
from profiles.workloads.int8_linears import can_quantise
from profiles.workloads.loading import load_workload

SMALL = "a small model on little data: results may not hold for a large one"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionJob:
    """A checked order, and what is to be said about it."""

    file: PlanFile
    order: CompressionOrder
    data_name: str
    oversubscribed: bool
    started: str
    sample_shape: tuple[int, ...]
    load_before: MachineLoad | None
    notes: tuple[str, ...]

    @property
    def payload(self) -> dict[str, Any]:
        """What the ranks are given, JSON-able."""
        return {"file": asdict(self.file), "order": asdict(self.order)}

    @property
    def choices(self) -> tuple[CompressionChoice, ...]:
        """The recipes that are run."""
        return tuple(choice for choice in self.file.compression if not choice.refusal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """Steps of each compressed model, a folder for ONNX files, where those are timed, and whether torch.compile is too.

    `runtimes` are names with commas between; None for all that are here.
    """

    more_steps: int | None = None
    export: Path | None = None
    runtimes: str | None = None
    compiles: bool = False


def prepare_compression(path: Path, extras: Extras, options: RunOptions) -> CompressionJob:
    """Read and check everything; what is refused was refused before anything started.

    Raises: ArtifactError, PlanError, InputError, EnvironmentFailure.
    """
    file = artifacts.read(path, "plan", PlanFile)
    if not file.compression:
        raise PlanError(f"{path} has no compressed models: plan again with --compress auto, or with a list of recipes")
    if file.workload.kind != "transformers" or file.workload.task:
        raise PlanError(f"{path}: {file.workload.title} is a module: only models of a config.json are compressed")
    if in_job():
        raise InputError("--compress starts its own ranks on this machine: run it without torchrun and srun")
    workload, device_kind = load_workload(file.workload), current_device_kind()
    check_data(file, workload)
    chosen = _chosen(file, path)
    check_plan(chosen[0].plan, file, facts_of_workload(workload))
    if any(choice.recipe.scheme for choice in chosen) and not can_quantise():
        raise EnvironmentFailure("8-bit recipes need torchao: pip install 'trainwright[compress]', or leave them out")
    runtimes, absent = _handed_over(extras)
    data = "" if options.data is None else str(options.data.absolute())
    load_samples(data, workload, file.sequence_length, options.seed)
    oversubscribed = check_devices(file.num_devices, device_kind, options.oversubscribe)
    check_room(file.num_devices, device_kind)
    notes = [f"{c.recipe.name} is left out: {c.refusal}" for c in file.compression if c.refusal]
    load_before, warnings = look_before(file.num_devices)
    return CompressionJob(
        file=file,
        order=CompressionOrder(
            first_steps=options.steps,
            more_steps=options.steps if extras.more_steps is None else extras.more_steps,
            seed=options.seed,
            data_file=data,
            device_kind=device_kind,
            timeout_seconds=options.timeout,
            export_folder="" if extras.export is None else str(extras.export.absolute()),
            runtimes=runtimes,
            compiles=extras.compiles,
        ),
        data_name=data_name("" if options.data is None else str(options.data), workload),
        oversubscribed=oversubscribed,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        sample_shape=tuple(workload.example_input(1, file.sequence_length).shape[1:]),
        load_before=load_before,
        notes=(*notes, *absent, *warnings, SMALL),
    )


def _handed_over(extras: Extras) -> tuple[tuple[str, ...], list[str]]:
    """The runtimes that exported models are timed in, and notes of those that are not here.

    Raises: EnvironmentFailure where nothing can be exported, or a runtime that is named is missing.
    """
    if extras.export is None:
        return (), []
    check_can_export()
    ensure_folder(extras.export)
    return chosen_runtimes(extras.runtimes)


def _chosen(file: PlanFile, path: Path) -> tuple[CompressionChoice, ...]:
    """The recipes of a plan file that are carried out, the model as it is first.

    Raises: PlanError.
    """
    chosen = tuple(choice for choice in file.compression if not choice.refusal)
    if not chosen or chosen[0].recipe.method != "none":
        raise PlanError(f"{path}: the first recipe must be none, the unchanged model, from which the others start")
    for choice in chosen:
        if recipe(choice.recipe.name) != choice.recipe:
            raise PlanError(f"{path}: recipe {choice.recipe.name} does not match its name: plan again")
        if reason := cannot_train(choice.recipe, choice.plan):
            raise PlanError(reason)
    return chosen


def compression_file(job: CompressionJob, found: dict[str, Any]) -> CompressionFile:
    """The compression file of a job from what its rank 0 gave."""
    load = artifacts.validate(found["load"], MachineLoad, "the load")
    busy = [f"the machine was busy ({causes(load)}): times are shown but not judged"] if load.is_busy else []
    return CompressionFile(
        model_name=job.file.model_name,
        workload=job.file.workload,
        plan=job.choices[0].plan.id,
        global_batch_size=job.file.global_batch_size,
        sequence_length=job.file.sequence_length,
        sample_shape=job.sample_shape,
        first_steps=job.order.first_steps,
        seed=job.order.seed,
        choices=job.choices,
        results=tuple(artifacts.validate(fields, CompressionResult, "the result") for fields in found["results"]),
        environment=environment(
            current_fingerprint(job.order.device_kind),
            job.file.num_devices,
            job.started,
            job.oversubscribed,
            job.data_name,
            job.load_before,
        ),
        load=load,
        notes=(*job.notes, *found.get("notes", ()), *busy),
    )
