"""The log of steps that exported scripts write (steps.jsonl), read as a job that was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.stacks import job_files, scripted
from planner.stacks.accelerate import reading as accelerate
from planner.stacks.accelerate.export import CONFIG
from planner.stacks.accelerate.words import STACK as ACCELERATE
from planner.stacks.deepspeed import reading as deepspeed
from planner.stacks.deepspeed.words import STACK as DEEPSPEED
from planner.stacks.handover import Given, StackJob, Step
from planner.stacks.said import Setting, Settings, flat, from_yaml
from profiles.errors import InputError
from profiles.inputs.foreign import read_text

TITLE = "the log of steps (steps.jsonl) of a script that trainwright wrote"
WANTED = "give the steps.jsonl of a script that trainwright wrote"


def recognises(path: Path, text: str) -> bool:
    """Whether a text looks like such a log."""
    return text.startswith('{"log": "steps"')


def read(path: Path, text: str, given: Given) -> StackJob:
    """The job of a log, and its steps; a line that was cut short at the end is left out.

    Raises: InputError where it cannot be read, or has no steps.
    """
    lines = list(_lines(path, text))
    head, steps = lines[0], [line for line in lines[1:] if "step" in line]
    if not steps:
        raise InputError(f"{path}: it has no steps yet: wait for the first")
    job = _job(path, head, given)
    peaks = [float(line["peak_bytes"]) for line in steps if "peak_bytes" in line]
    return replace(job, steps=tuple(_step(path, line) for line in steps), peak_bytes=max(peaks, default=None))


def _lines(path: Path, text: str) -> Iterable[dict[str, Any]]:
    rows = text.splitlines()
    for number, row in enumerate(rows, 1):
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            if number == len(rows) and number > 1:
                return
            raise InputError(f"{path}: line {number} is not JSON: {WANTED}") from None
        if not isinstance(line, dict):
            raise InputError(f"{path}: line {number} is not an object: {WANTED}")
        yield line


def _step(path: Path, line: dict[str, Any]) -> Step:
    try:
        return Step(number=int(line["step"]), seconds=float(line["seconds"]), loss=float(line["loss"]))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: {json.dumps(line)[:80]} is not a step with seconds and loss: {WANTED}") from None


def _job(path: Path, head: dict[str, Any], given: Given) -> StackJob:
    """The job that the first line tells of, by the words of its stack."""
    job, config, settings = (head.get(name) for name in ("job", "config", "settings"))
    if not (isinstance(job, dict) and isinstance(config, dict) and isinstance(settings, dict)):
        raise InputError(f"{path}: its first line does not describe a job: {WANTED}")
    # Of devices those count that ran.
    job = {**job, "num_devices": head.get("num_devices")}
    given = job_files.filled(given, job, config, path.stem)
    stack, assumed = str(job.get("stack")), list[str]()
    if stack == DEEPSPEED:
        return deepspeed.job_of(_first_line(path, settings), given, assumed)
    if stack == ACCELERATE:
        beside = path.parent / CONFIG
        shared = from_yaml(beside, read_text(beside, "put it beside the log")) if beside.is_file() else None
        return accelerate.job_of(shared, _first_line(path, settings), given, assumed)
    return scripted.job_of(_first_line(path, job), given, assumed)


def _first_line(path: Path, settings: dict[str, Any]) -> Settings:
    return Settings(path, (Setting(key, value, 1) for key, value in flat(settings)))
