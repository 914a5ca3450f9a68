"""From what each rank has of a plan to one account of it on rank 0, in amounts that do not grow with the run."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.distributed as dist

from executor.mesh import Coordinates
from executor.observe.device_memory import DeviceMemory
from executor.observe.events import StepTrace
from executor.observe.kept_steps import KeptSteps
from executor.observe.time_parts import StepParts, median_parts, middle_step, spans, step_parts
from executor.run.faults import diverged
from executor.run.reference import Checked
from planner.plans import Plan
from planner.prediction import Span
from profiles.machines.counters import Counters

# Numbers of each rank that are under way at a time: with a thousand ranks, 64 MiB on rank 0.
NUMBERS_AT_A_TIME = 8192
# Steps whose traces the ranks of a pipeline show one another at a time.
STEPS_AT_A_TIME = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one rank has to tell of one plan: losses are none where it does not compute them, `counted` of timed steps.

    `exchange_seconds` are those of a step by part, None where they were not observed.
    """

    place: Coordinates
    steps: KeptSteps
    exchange_seconds: dict[str, float] | None
    losses: array[float]
    peak_bytes: float
    counted: Counters
    checked: Checked
    device_memory: DeviceMemory = DeviceMemory()
    attention: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What all ranks have of a plan: losses are means over the replicas, `seconds` medians of the busiest rank's parts.

    Those are of all steps that are kept; `step_seconds`, the slowest rank's, of every timed one.
    """

    step_seconds: tuple[float, ...]
    seconds: dict[str, float | None]
    spans: tuple[Span, ...]
    losses: tuple[float, ...]
    checked_losses: tuple[float, ...]
    peak_bytes: tuple[float, ...]
    counted: tuple[Counters, ...]
    device_memory: tuple[DeviceMemory, ...]
    attention: tuple[str, ...]


def account(
    plan: Plan, outcome: Outcome, stages: dist.ProcessGroup | None, device: torch.device, first_step: int = 0
) -> Account | None:
    """What came of a plan, on rank 0, None elsewhere; collective. `stages` are the ranks of this one's pipeline.

    Raises: ToleranceError, on all ranks, where a loss is no number.
    """
    has_loss = bool(outcome.losses) and outcome.place.tensor == 0
    of_device = (outcome.device_memory, outcome.attention)
    about = (outcome.exchange_seconds, outcome.peak_bytes, outcome.counted, outcome.checked, of_device, has_loss)
    ranks = _gathered_objects(about)
    losses = _mean_losses(plan, outcome, [rank[-1] for rank in ranks], device, first_step)
    step_seconds = tuple(max(step) for step in _gathered(outcome.steps.seconds, device))
    seconds: dict[str, float | None] = {}
    drawn: tuple[Span, ...] = ()
    if outcome.steps.seconds:
        parts = _gathered_parts(_own_parts(plan, outcome, stages, device), device)
        if dist.get_rank() == 0:
            seconds = median_parts(plan, parts, [rank[0] for rank in ranks], device.type == "cuda")
        drawn = _spans(outcome, step_seconds, stages)
    if dist.get_rank() != 0:
        return None
    checked = [rank[3].losses for rank in ranks if rank[-1]]
    return Account(
        step_seconds=step_seconds,
        seconds=seconds,
        spans=drawn,
        losses=losses,
        checked_losses=tuple(sum(step) / len(step) for step in zip(*checked, strict=True)),
        peak_bytes=tuple(rank[1] for rank in ranks),
        counted=tuple(rank[2] for rank in ranks),
        device_memory=tuple(rank[4][0] for rank in ranks),
        attention=tuple(sorted({name for rank in ranks for name in rank[4][1]})),
    )


def _mean_losses(
    plan: Plan, outcome: Outcome, have: Sequence[bool], device: torch.device, first_step: int
) -> tuple[float, ...]:
    """Losses of every step on rank 0, over the ranks that have all of a replica's."""
    number = _maximum(len(outcome.losses), device)
    means: list[float] = []
    bad: list[tuple[int, float] | None] = [None]
    for step, losses in enumerate(_gathered(outcome.losses or array("d", bytes(8 * number)), device)):
        known = [loss for loss, has in zip(losses, have, strict=True) if has]
        means.append(sum(known) / len(known))
        if bad[0] is None and not math.isfinite(means[-1]):
            bad[0] = first_step + step + 1, means[-1]
    dist.broadcast_object_list(bad)
    if bad[0] is not None:
        raise diverged(plan, *bad[0])
    return tuple(means)


def _own_parts(plan: Plan, outcome: Outcome, stages: dist.ProcessGroup | None, device: torch.device) -> list[StepParts]:
    """The parts of this rank's kept steps, beside the other ranks of its pipeline; collective among these."""
    steps, pipeline = outcome.steps, outcome.place.pipeline
    # Where steps of one rank take more room, all keep as few.
    steps.thin(_maximum(steps.stride, device))
    return [
        step_parts(plan, own, pipeline, beside)
        for start in range(0, len(steps), STEPS_AT_A_TIME)
        for own, beside in _beside(steps.traces(start, start + STEPS_AT_A_TIME), pipeline, stages)
    ]


def _beside(
    traces: list[StepTrace], pipeline: int, stages: dist.ProcessGroup | None
) -> Iterator[tuple[StepTrace, dict[int, StepTrace]]]:
    """Each trace of this rank with those of the same step of its pipeline, by place."""
    everyone: list[Any] = [(pipeline, traces)]
    if stages is not None:
        everyone = [None] * dist.get_world_size(stages)
        dist.all_gather_object(everyone, (pipeline, traces), group=stages)
    for step, own in enumerate(traces):
        yield own, {place: theirs[step] for place, theirs in everyone}


def _spans(outcome: Outcome, step_seconds: Sequence[float], stages: dist.ProcessGroup | None) -> tuple[Span, ...]:
    """The actions of the middle step of rank 0's pipeline, on rank 0."""
    index = [middle_step(step_seconds, outcome.steps.stride) if step_seconds else 0]
    dist.broadcast_object_list(index)
    place = outcome.place
    if (place.data, place.context, place.tensor) != (0, 0, 0):
        return ()
    ((_, beside),) = _beside(outcome.steps.traces(index[0], index[0] + 1), place.pipeline, stages)
    return spans(beside) if dist.get_rank() == 0 else ()


def _gathered_parts(own: Sequence[StepParts], device: torch.device) -> list[list[StepParts]]:
    """The parts of each step by rank, on rank 0."""
    names = list(StepParts.__dataclass_fields__)
    numbers = list(_gathered(array("d", [value for parts in own for value in astuple(parts)]), device))
    return [
        [StepParts(**dict(zip(names, values, strict=True))) for values in zip(*step, strict=True)]
        for step in (numbers[start : start + len(names)] for start in range(0, len(numbers), len(names)))
    ]


def _gathered(values: array[float], device: torch.device) -> Iterator[list[float]]:
    """All ranks' first numbers, then their second ones, and so on, on rank 0; as many on every rank."""
    is_first = dist.get_rank() == 0
    for start in range(0, len(values), NUMBERS_AT_A_TIME):
        own = torch.tensor(values[start : start + NUMBERS_AT_A_TIME], dtype=torch.float64, device=device)
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())] if is_first else None
        dist.gather(own, everyone)
        if everyone is not None:
            yield from torch.stack(everyone, dim=1).tolist()


def _gathered_objects(own: Any) -> list[Any]:
    everyone = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(own, everyone)
    return everyone or []


def _maximum(value: int, device: torch.device) -> int:
    most = torch.tensor(value, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)
