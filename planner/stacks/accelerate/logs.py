"""transformers' trainer_state.json, and what its Trainer prints, read as jobs that were measured."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.stacks import job_files
from planner.stacks.accelerate.export import ARGUMENTS, CONFIG
from planner.stacks.accelerate.reading import job_of
from planner.stacks.handover import Given, StackJob, Step
from planner.stacks.said import Setting, Settings, from_yaml
from profiles.errors import InputError
from profiles.inputs.foreign import read_text

STATE_TITLE = "transformers' trainer_state.json"
TITLE = "a log of transformers' Trainer"
WANTED = "give a file that its own software reads"
# Rates are rounded to three digits behind the point: samples of a step by two of them are off by as much.
OFF = 0.02
PRINTED = re.compile(r"\{'(?:loss|train_runtime)': [^}]*\}")


def recognises_state(path: Path, text: str) -> bool:
    """Whether a file looks like trainer_state.json."""
    return path.suffix == ".json" and '"log_history"' in text


def recognises(path: Path, text: str) -> bool:
    """Whether a text looks like what a Trainer prints."""
    return "'train_runtime'" in text and "'train_steps_per_second'" in text


def read_state(path: Path, text: str, given: Given) -> StackJob:
    """The job of a trainer_state.json, whose settings stand beside it.

    Raises: InputError where it cannot be read, or too little is said.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}): {WANTED}") from None
    history = content.get("log_history") if isinstance(content, dict) else None
    if not isinstance(history, list):
        raise InputError(f"{path}: log_history is not a list: {WANTED}")
    micro = content.get("train_batch_size")
    entries = [entry for entry in history if isinstance(entry, dict)]
    return _job(path, entries, given, micro if isinstance(micro, int) else 0, _whole(content.get("global_step")))


def read(path: Path, text: str, given: Given) -> StackJob:
    """The job of what a Trainer prints.

    Raises: InputError where too little is said.
    """
    return _job(path, list(_printed(text)), given, 0, 0)


def _printed(text: str) -> Iterator[dict[str, Any]]:
    for found in PRINTED.finditer(text):
        try:
            entry = ast.literal_eval(found[0])
        except (ValueError, SyntaxError):
            continue
        yield {key: _number(value) for key, value in entry.items()}


def _number(value: Any) -> Any:
    """Numbers that newer versions print as words."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 < value < math.inf else 0


def _job(path: Path, entries: list[dict[str, Any]], given: Given, micro: int, last: int) -> StackJob:
    nothing: dict[str, Any] = {}
    end = next((entry for entry in reversed(entries) if "train_runtime" in entry), nothing)
    rate, samples_rate = (end.get(f"train_{what}_per_second") for what in ("steps", "samples"))
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise InputError(
            f"{path}: it does not say how many steps it made per second: give the log of a training that has ended"
        )
    given, assumed = job_files.beside(path, given)
    by_rates = samples_rate / rate if isinstance(samples_rate, int | float) and samples_rate < math.inf else 0.0
    config, arguments = (_beside(path, name, assumed) for name in (CONFIG, ARGUMENTS))
    if arguments is None:
        stated = [Setting("per_device_train_batch_size", micro, 1)] if micro else []
        arguments = Settings(path, stated)
        if by_rates and not given.global_batch_size:
            given = replace(given, global_batch_size=round(by_rates))
            assumed.append(f"{round(by_rates)} samples a step: samples by steps a second")
    job = job_of(config, arguments, given, assumed)
    if by_rates and abs(by_rates / job.global_batch_size - 1) > OFF:
        raise InputError(
            f"{path}: {by_rates:.4g} samples a step by its rates, not the {job.global_batch_size} of its settings: "
            "give the settings of this training"
        )
    note = f"every step took {1 / rate:.4g} s: the log has one rate for all"
    return replace(job, steps=_steps(entries, 1 / rate, last), assumed=(*job.assumed, note))


def _steps(entries: list[dict[str, Any]], seconds: float, last: int) -> tuple[Step, ...]:
    """Steps with their losses, where they are noted, and the time of all."""
    losses = {_whole(entry.get("step")) or place: entry["loss"] for place, entry in enumerate(
        (entry for entry in entries if isinstance(entry.get("loss"), int | float)), 1)}  # fmt: skip
    numbers = sorted(losses) or [max(last, 1)]
    return tuple(Step(number=number, seconds=seconds, loss=losses.get(number)) for number in numbers)


def _beside(path: Path, name: str, taken: list[str]) -> Settings | None:
    # A Trainer writes its state into out/, or out/checkpoint-10/.
    other = job_files.folder_with(path, name) / name
    if not other.is_file():
        return None
    taken.append(f"{other.name} was read as well")
    return from_yaml(other, read_text(other, WANTED))
