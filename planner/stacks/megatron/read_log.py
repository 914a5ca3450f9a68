"""Megatron's training logs: the arguments that it prints, and what its steps took."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from planner.stacks.handover import Given, StackJob, Step
from planner.stacks.megatron.logged import says_nothing
from planner.stacks.megatron.read_job import read_job
from planner.stacks.megatron.read_yaml import of_attribute
from planner.stacks.megatron.told import Said
from profiles.errors import InputError
from profiles.units import MIB

BEGINS = re.compile(r"-{8} arguments -{8}")
ENDS = re.compile(r"-{8} end of arguments -{8}")
LONGEST_LINE = 10_000
# Ranks may be named in front, as srun and torchrun do.
ARGUMENT = re.compile(r"^(?:.*?\s)?([A-Za-z_]\w*) \.{2,} (.*)$")
SHORT_ARGUMENT = re.compile(r"^(?:.*?\s)?([A-Za-z_]\w{46,}) \.* ?(.*)$")
STEP = re.compile(r"iteration\s+(\d+)\s*/\s*\d+")
SECONDS = re.compile(r"elapsed time per iteration \((ms|s)\):\s*([\d.eE+-]+)")
LOSS = re.compile(r"lm loss:\s*([\d.eE+-]+)")
ALLOCATED = re.compile(r"max allocated:\s*([\d.eE+]+)")
SHOWN = re.compile(r"memory \((MB|GB|bytes)\)")
UNITS = {"MB": float(MIB), "GB": 1024.0 * MIB, "bytes": 1.0}


def is_log(path: Path, text: str) -> bool:
    """Whether a file has the arguments that Megatron prints as it starts."""
    return bool(BEGINS.search(text)) and "micro_batch_size" in text


def read_log(path: Path, text: str, given: Given) -> StackJob:
    """The job of a log, with its measured steps and memory.

    Raises: InputError where its arguments end before they are all there, or two starts of it differ.
    """
    where, lines = str(path), text.splitlines()
    said = list(_arguments(where, lines))
    steps = tuple(_steps(lines))
    return read_job(where, said, given, accepted=True, steps=steps, peak_bytes=_peak(lines))


def _arguments(where: str, lines: list[str]) -> Iterator[Said]:
    inside = ended = False
    for number, line in enumerate(lines, 1):
        if ENDS.search(line):
            inside, ended = False, True
        elif BEGINS.search(line):
            inside = True
        elif inside and len(line) <= LONGEST_LINE:
            found = ARGUMENT.match(line) or SHORT_ARGUMENT.match(line)
            if found:
                name, value = found.group(1), found.group(2).strip()
                if says_nothing(name, value):
                    continue
                yield from of_attribute(name, tuple(value.split()), f"line {number}")
    if not ended:
        raise InputError(f"{where}: its arguments are not all there: no line says that they end")


def _steps(lines: list[str]) -> Iterator[Step]:
    for line in lines:
        found, seconds = STEP.search(line), SECONDS.search(line)
        if found is None or seconds is None:
            continue
        loss = LOSS.search(line)
        scale = 1e-3 if seconds.group(1) == "ms" else 1.0
        yield Step(
            number=int(found.group(1)),
            seconds=_number(seconds.group(2), scale),
            loss=_number(loss.group(1)) if loss else None,
        )


def _number(text: str, scale: float = 1.0) -> float | None:
    try:
        return float(text) * scale
    except ValueError:
        return None


def _peak(lines: list[str]) -> float | None:
    """The most that any rank says it had allocated."""
    most: float | None = None
    for line in lines:
        unit, allocated = SHOWN.search(line), ALLOCATED.search(line)
        if unit and allocated:
            value = _number(allocated.group(1), UNITS[unit.group(1)])
            most = value if most is None or (value is not None and value > most) else most
    return most
