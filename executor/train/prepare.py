"""What of a training can be refused before its ranks start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from executor.run.checks import check_data
from executor.run.sinks import check_sinks
from executor.train.hf_weights import known_names
from executor.train.optimizers import optimizer_class
from executor.train.samples import is_tokens, sources_of
from executor.train.settings import DataSettings, TrainSettings
from planner.plans import Plan
from planner.prediction import PlanFile
from profiles.errors import InputError
from profiles.files import ensure_folder
from profiles.workloads.hf_task import check_weights
from profiles.workloads.trust import OPTION, is_factory, named_modules
from profiles.workloads.workload import Workload

# Bytes of a text, which the check before a training feeds.
BYTE_VALUES = 256


def with_weights(file: PlanFile, settings: TrainSettings) -> PlanFile:
    """A plan file whose task begins with the weights that the settings name."""
    if not settings.weights or not file.workload.task:
        return file
    return replace(file, workload=replace(file.workload, weights=settings.weights))


def data_for_check(data: DataSettings) -> str:
    """What the check before a training reads of its data: a function, or arrays; else what needs no file."""
    return data.train if is_factory(data.train) or data.train.endswith(".npz") else ""


def check_training(
    settings: TrainSettings,
    file: PlanFile,
    plan: Plan,
    workload: Workload,
    seed: int,
    *,
    keeps: bool,
) -> None:
    """Read and check what the settings name: data, weights, folders, and the optimizer against the plan.

    `keeps` tells whether checkpoints are kept.

    Raises: InputError, PlanError, EnvironmentFailure.
    """
    check_sinks(settings.log.sinks)
    optimizer_class(settings.optimizer, plan, keeps_checkpoints=keeps)
    if settings.weights:
        check_weights(replace(workload.spec, weights=settings.weights))
    if workload.task is None and (settings.weights or settings.export):
        known_names(workload)
    if settings.export:
        ensure_folder(Path(settings.export))
    if not is_tokens(settings.data.train, workload):
        check_data(file, workload, settings.data.train)
    elif settings.check and workload.task is None and workload.vocab_size < BYTE_VALUES:
        raise InputError(
            f"the check before training uses bytes, but {workload.spec.title} has {workload.vocab_size} tokens: "
            "give check = false"
        )
    num_steps, schedule = settings.num_steps(file), settings.schedule
    if schedule.warmup_steps + schedule.decay_steps > num_steps:
        raise InputError(f"[schedule] warms up and decays for more than the {num_steps} steps of the training")
    _, evaluated = sources_of(settings.data, workload, file.sequence_length, seed, num_steps)
    if settings.evaluation.every and evaluated is None:
        raise InputError("[evaluation] every is given, but no data to evaluate on: give [data] evaluation or held_out")
    if evaluated is not None and 0 < evaluated.num_samples < plan.global_batch_size:
        raise InputError(
            f"[data] leaves {evaluated.num_samples} samples to evaluate on, but a global batch has "
            f"{plan.global_batch_size}: give more"
        )


def check_modules(data: DataSettings, trusted: Sequence[str]) -> None:
    """Check that modules which the settings name may be imported: a file only names one.

    Raises: InputError.
    """
    for name in (data.train, data.evaluation):
        for module in named_modules(name) if is_factory(name) else ():
            if module not in trusted:
                raise InputError(
                    f"the settings name the module {module} for their data, and a file runs no code unasked: if you "
                    f"trust that module, give {OPTION} {module}"
                )
