"""Which software plans are handed over to, and whose files are read: one entry per stack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planner.prediction import Candidate, PlanFile
from planner.stacks import job_files, scripted, step_log
from planner.stacks.accelerate import logs as trainer
from planner.stacks.accelerate import reading as accelerate
from planner.stacks.accelerate.export import export as to_accelerate
from planner.stacks.deepspeed import reading as deepspeed
from planner.stacks.deepspeed.export import export as to_deepspeed
from planner.stacks.handover import Given, Handover, StackJob
from planner.stacks.megatron.export import LAYERS, exporter
from planner.stacks.megatron.read_log import is_log, read_log
from planner.stacks.megatron.read_scripts import is_script, read_scripts
from planner.stacks.megatron.read_yaml import is_yaml, read_yaml
from planner.stacks.said import Settings, from_yaml
from planner.stacks.torchtitan import logs as titan_logs
from planner.stacks.torchtitan import reading as torchtitan
from planner.stacks.torchtitan.export import export as to_torchtitan
from profiles.errors import InputError, UnknownNameError

Export = Callable[[PlanFile, Candidate], Handover]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A kind of file of another software. `recognises` looks at its name and text and raises nothing.

    `read` raises InputError for two settings that contradict (both lines named), or where something that has no usual
    value is missing. Nothing of a file is executed.
    """

    title: str
    recognises: Callable[[Path, str], bool]
    read: Callable[[Path, str, Given], StackJob]


def exporters() -> dict[str, Export]:
    """What writes plans down for other software, by the stack's name."""
    return {stack: exporter(stack) for stack in LAYERS} | {
        "accelerate": to_accelerate,
        "deepspeed": to_deepspeed,
        "torchtitan": to_torchtitan,
        "horovod": scripted.export_horovod,
        "tensorflow": scripted.export_tensorflow,
    }


def _by(job_of: Callable[[Settings, Given, list[str]], StackJob]) -> Callable[[Path, str, Given], StackJob]:
    """What reads a file of settings alone, beside which there may be a job.json and a config.json."""

    def read_settings(path: Path, text: str, given: Given) -> StackJob:
        filled, taken = job_files.beside(path, given)
        return job_of(from_yaml(path, text), filled, taken)

    return read_settings


def readers() -> tuple[Reader, ...]:
    """What reads files of other software, the surest first."""
    return (
        Reader(title=step_log.TITLE, recognises=step_log.recognises, read=step_log.read),
        Reader(title=scripted.TITLE, recognises=scripted.recognises, read=_by(scripted.job_of)),
        Reader(title=trainer.STATE_TITLE, recognises=trainer.recognises_state, read=trainer.read_state),
        Reader(title=titan_logs.TITLE, recognises=titan_logs.recognises, read=titan_logs.read),
        Reader(title=trainer.TITLE, recognises=trainer.recognises, read=trainer.read),
        Reader(title=deepspeed.TITLE, recognises=deepspeed.recognises, read=_by(deepspeed.job_of)),
        Reader(title=accelerate.YAML_TITLE, recognises=accelerate.recognises_yaml, read=accelerate.read_config),
        Reader(
            title=accelerate.ARGUMENTS_TITLE, recognises=accelerate.recognises_arguments, read=accelerate.read_arguments
        ),
        Reader(title=torchtitan.TITLE, recognises=torchtitan.recognises, read=torchtitan.read),
        Reader(title="training logs of Megatron", recognises=is_log, read=read_log),
        Reader(title="YAML files of Megatron", recognises=is_yaml, read=read_yaml),
        Reader(title="launch scripts of Megatron", recognises=is_script, read=read_scripts),
    )


def export(stack: str, file: PlanFile, candidate: Candidate) -> Handover:
    """A plan in another software's words.

    Raises: UnknownNameError for software that plans are not written for.
    """
    known = exporters()
    if stack not in known:
        raise UnknownNameError("software to export for", stack, sorted(known))
    return known[stack](file, candidate)


def read(path: Path, text: str, given: Given) -> StackJob:
    """The job that a file of another software tells of.

    Raises: InputError where no reader knows it, or where it contradicts itself.
    """
    for reader in readers():
        if reader.recognises(path, text):
            return reader.read(path, text, given)
    titles = "; ".join(reader.title for reader in readers())
    raise InputError(f"{path}: not a known file of other software; these are read: {titles}")
