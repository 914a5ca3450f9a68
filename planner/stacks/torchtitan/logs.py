"""torchtitan's log read as a job that was measured: what it prints of its settings, and its steps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from planner.stacks import job_files
from planner.stacks.handover import Given, StackJob, Step
from planner.stacks.said import Setting, Settings, flat
from planner.stacks.torchtitan.reading import job_of
from planner.stacks.torchtitan.words import (
    COMPILE,
    GLOBAL,
    LENGTH,
    LOCAL,
    LOW,
    PIECE,
    RECOMPUTE,
    REPLICAS,
    SCHEDULE,
    SHARDS,
    STACK,
    STAGES,
    canonical,
)
from profiles.errors import InputError
from profiles.machines.stacks import load_stack
from profiles.units import GIB

TITLE = "torchtitan's log"
# Logs that were copied from a screen have lost the escape.
COLOR = re.compile(r"\x1b?\[\d[\d;]*m")
STEP = re.compile(
    r"step:\s*(?P<step>\d+)\s+loss:\s*(?P<loss>\d+(?:\.\d+)?|nan)\s+(?:grad_norm:\s*\S+\s+)?memory:\s*(?P<gib>\d+(?:\.\d+)?)GiB\S*\s+"
    r"(?:tps|wps):\s*(?P<tps>\d[\d,]*)"
)
MESH = re.compile(
    r"device mesh with parallelism: pp=(\d+), dp_replicate=(\d+), dp_shard=(-?\d+), cp=(\d+), tp=(\d+)(?:, ep=(\d+))?"
)
AXES = (STAGES, REPLICAS, SHARDS, "parallelism.context_parallel_degree", "parallelism.tensor_parallel_degree",
        "parallelism.expert_parallel_degree")  # fmt: skip
OLD_MESH = re.compile(r"Building \d-D device mesh with \[([^\]]+)\], \[([^\]]+)\]")
OLD_AXES = {"pp": STAGES, "dp_replicate": REPLICAS, "dp_shard": SHARDS, "dp": SHARDS, "cp": AXES[3], "tp": AXES[4]}
SIZES = re.compile(
    r"local batch size (?P<local>\d+), global batch size (?P<samples>\d+),.* sequence length (?P<length>\d+)"
)
MODEL = re.compile(r"Model (\S+) (\S+) size: ([\d,]+) total parameters")
DEVICE = re.compile(r"capacity: (.+?) with ([\d.]+)GiB memory")
PIPELINE = re.compile(r"Using pipeline schedule (\w+) with (\d+) microbatches and (\d+) stages")
VERSION = re.compile(r"torchtitan version: (\S+)")
CONFIGS = "Running with configs: "
# What is read off a line as it stands, by what it says.
PLAIN = {
    "Compiling each TransformerBlock with torch.compile": (COMPILE, True),
    "Float8 training active": (LOW, True),
    "Applied FullAC activation checkpointing": (RECOMPUTE, "full"),
    "Applied full activation checkpointing": (RECOMPUTE, "full"),
    "Applied SelectiveAC activation checkpointing": (RECOMPUTE, "selective"),
    "Applied selective activation checkpointing": (RECOMPUTE, "selective"),
    "Async TP is enabled": ("compile.enable_async_tensor_parallel", True),
}


def recognises(path: Path, text: str) -> bool:
    """Whether a text looks like torchtitan's log."""
    return bool(STEP.search(COLOR.sub("", text)))


def read(path: Path, text: str, given: Given) -> StackJob:
    """The job of a log, with its steps; what its lines do not say is as in a file without settings.

    Raises: InputError where they contradict each other, or do not say enough.
    """
    given, assumed = job_files.beside(path, given)
    lines = COLOR.sub("", text).splitlines()
    whole = "\n".join(lines)
    settings = Settings(path, canonical(_once(_settings(lines))))
    version = found[1] if (found := VERSION.search(whole)) else ""
    known = job_files.version_of(load_stack(STACK))
    if version and version != known:
        assumed.append(f"torchtitan {version} was not tried: read as {known}")
    if not any(settings.has(key) for key in (RECOMPUTE, "activation_checkpoint")):
        assumed.append("nothing is recomputed: no line says otherwise")
        settings.add(Setting(RECOMPUTE, "none", 1))
    job = job_of(settings, given, assumed, version)
    tokens = job.global_batch_size * job.sequence_length / job.num_devices
    steps, peak = _steps(whole, tokens)
    if not steps:
        raise InputError(f"{path}: it has no step with its rate (tps): give the whole log")
    device = found[1] if (found := DEVICE.search(whole)) else ""
    # Its memory is what the allocator holds.
    cells = {**job.cells, "peak_mem_kind": "reserved"}
    return replace(job, steps=steps, peak_bytes=peak, device=device, cells=cells)


def _settings(lines: list[str]) -> Iterator[Setting]:
    """What each line says of settings, and the configuration that a job may print."""
    for number, line in enumerate(lines, 1):
        yield from (Setting(key, value, number) for sign, (key, value) in PLAIN.items() if sign in line)
        if found := MESH.search(line):
            yield from _numbers(AXES, found.groups(), number)
        if found := OLD_MESH.search(line):
            names = [OLD_AXES.get(name.strip(" '\""), "") for name in found[1].split(",")]
            yield from _numbers(tuple(names), tuple(found[2].replace(" ", "").split(",")), number)
        if found := SIZES.search(line):
            yield from _numbers((LOCAL, GLOBAL, LENGTH), found.groups(), number)
        if found := MODEL.search(line):
            yield Setting("model.name", found[1], number)
            yield Setting("model.flavor", found[2], number)
        if found := PIPELINE.search(line):
            yield Setting(SCHEDULE, found[1], number)
            yield Setting("log.microbatches", int(found[2]), number)
            yield Setting("log.stages", int(found[3]), number)
        if CONFIGS in line:
            yield from _printed(lines, number)


def _numbers(keys: tuple[str, ...], values: tuple[str | None, ...], line: int) -> Iterator[Setting]:
    pairs = zip(keys, values, strict=False)
    return (Setting(key, int(value), line) for key, value in pairs if key and value is not None)


def _printed(lines: list[str], number: int) -> Iterator[Setting]:
    """The settings that a job prints as JSON, on this line and those below it."""
    text = "\n".join([lines[number - 1].partition(CONFIGS)[2], *lines[number:]])
    try:
        content, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return
    if isinstance(content, dict):
        # Of a model by its whole configuration the name and the flavor are enough.
        model = content.pop("model_spec", None) or {}
        kept = {f"model.{key}": model[key] for key in ("name", "flavor") if key in model}
        yield from (Setting(key, value, number) for key, value in (*flat(content), *kept.items()))


def _once(settings: Iterator[Setting]) -> Iterator[Setting]:
    """Settings where each rank prints the same lines; of batches and axes, what was made of a configuration counts."""
    made: dict[str, Setting] = {}
    for setting in canonical(settings):
        before = made.get(setting.key)
        if before is None or before.value in (-1, None):
            made[setting.key] = setting
        elif setting.value not in (-1, None, before.value):
            yield setting
    pieces = made.pop("log.microbatches", None)
    made.pop("log.stages", None)
    local = made.get(LOCAL)
    if pieces and local and PIECE not in made and local.value % pieces.value == 0:
        made[PIECE] = Setting(PIECE, local.value // pieces.value, pieces.line)
    yield from made.values()


def _steps(text: str, tokens: float) -> tuple[tuple[Step, ...], float | None]:
    """Steps by number, each once, and the most memory; `tokens` of a device in one step."""
    steps: dict[int, Step] = {}
    most = 0.0
    for found in STEP.finditer(text):
        rate = float(found["tps"].replace(",", ""))
        most = max(most, float(found["gib"]))
        number = int(found["step"])
        steps.setdefault(
            number, Step(number=number, seconds=tokens / rate if rate else None, loss=float(found["loss"]))
        )
    return tuple(steps[number] for number in sorted(steps)), most * GIB if most else None
