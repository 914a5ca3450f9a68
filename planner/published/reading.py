"""Rows of a table of runs as jobs: every configuration column read, empty ones filled and noted, bad rows refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from planner.cost.job import COLUMNS, Each, Jobs, Names
from planner.cost.software_memory import CHUNKS_RULE, chunks_loss
from planner.published import checks
from planner.published.cells import Cells, Refused
from planner.published.columns import CONFIGURATION
from planner.published.layout_cells import UNKNOWN_BATCH, read_layout
from planner.published.model_cells import read_model
from planner.published.recompute_cells import UNKNOWN_RECOMPUTE, read_recompute
from planner.published.row import Row
from planner.published.software_cells import read_adapters, read_hardware, read_stack
from planner.published.unknowns import (
    BATCH_RULE,
    RECOMPUTE_RULE,
    needs_recomputation,
    with_recomputation,
    with_usual_batches,
)
from profiles.inputs import limits
from profiles.machines.devices import Device
from profiles.machines.stacks import Stack
from profiles.models.adapters import Adapters
from profiles.models.transformer import Flags, Transformer

# Device, software and what is trained of one job.
Values = tuple[Device, Stack, Adapters]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a table says.

    `accepted` is the row of each job, `assumptions` are per row, and `refused` gives the reason by row.
    """

    row_ids: list[str]
    jobs: Jobs
    accepted: NDArray[np.int64]
    assumptions: list[tuple[str, ...]]
    refused: dict[int, str]


def read_jobs(rows: Sequence[Mapping[str, str | None]]) -> Reading:
    """Every row as a job, or refused with a reason; never raises for what a row says."""
    ids: list[str] = []
    assumptions: list[tuple[str, ...]] = []
    refused: dict[int, str] = {}
    models: list[dict[str, float | bool]] = []
    jobs: list[dict[str, float | bool | str]] = []
    values: list[Values] = []
    accepted: list[int] = []
    for number, given in enumerate(rows):
        row = Row(given)
        ids.append(f"row {number + 1}" if row.is_empty("row_id") else row.cells["row_id"])
        row.cells = {name: row.cells[name] for name in CONFIGURATION if name in row.cells}
        cells = Cells({})
        try:
            checks.complete(row)
            cells = Cells(row.cells)
            model, job, value = _read(cells)
            checks.check(row, model, job)
        except Refused as reason:
            refused[number] = str(reason)
        else:
            models.append(model)
            jobs.append(job | {"guesses": float(row.guesses + cells.guesses)})
            values.append(value)
            accepted.append(number)
        assumptions.append((*row.notes, *cells.assumptions))
    columns, chosen = _choose(_columns(models, jobs, values), jobs)
    for place, note in chosen:
        column = note.split(": ")[0]
        told = assumptions[accepted[place]]
        assumptions[accepted[place]] = (*(text for text in told if not text.startswith(f"{column}: ")), note)
    return Reading(
        row_ids=ids,
        jobs=columns,
        accepted=np.array(accepted, dtype=np.int64),
        assumptions=assumptions,
        refused=refused,
    )


def _choose(jobs: Jobs, rows: list[dict[str, float | bool | str]]) -> tuple[Jobs, list[tuple[int, str]]]:
    """What a planner would choose where rows are silent, and of which job that is to be told."""
    chunked = chunks_loss(jobs)
    jobs = replace(jobs, fused_loss=np.where(chunked, "chunked", jobs.fused_loss))
    recomputed = needs_recomputation(jobs, np.array([UNKNOWN_RECOMPUTE in row for row in rows], dtype=bool))
    no_batch = np.array([UNKNOWN_BATCH in row for row in rows], dtype=bool)
    jobs = with_usual_batches(with_recomputation(jobs, recomputed), no_batch)
    told = [(int(place), f"recompute_class: full assumed ({RECOMPUTE_RULE})") for place in recomputed]
    told += [(int(place), f"fused_loss: chunked assumed ({CHUNKS_RULE})") for place in np.flatnonzero(chunked)]
    for place in np.flatnonzero(no_batch):
        told.append((int(place), f"micro_batch_size: {jobs.micro_batch[place]:g} assumed ({BATCH_RULE})"))
    guesses = jobs.guesses + no_batch
    guesses[recomputed] += 1
    return replace(jobs, guesses=guesses), told


def _read(cells: Cells) -> tuple[dict[str, float | bool], dict[str, float | bool | str], Values]:
    """Model and job of a row, and the values that are more than numbers and words."""
    stack = read_stack(cells)
    sequence = cells.size("seq_len")
    if sequence > limits.SEQUENCE:
        raise Refused(f"seq_len is {sequence:.12g}; the longest that can be predicted is {limits.SEQUENCE}")
    model = read_model(cells, sequence)
    device, hardware = read_hardware(cells, stack)
    layout = read_layout(cells, stack, model, float(hardware["num_devices"]))
    again = read_recompute(cells, model, sequence, by_operator=stack.memory.selective_by_operator)
    job = {"sequence": sequence, **hardware, **layout, **again}
    return model, job, (device, stack, read_adapters(cells, has_experts=model["num_experts"] > 0))


def _columns(
    models: list[dict[str, float | bool]],
    jobs: list[dict[str, float | bool | str]],
    values: list[Values],
) -> Jobs:
    """Rows turned into columns of the types that the fields have."""
    flags = {"gated", "tied", "biases"}
    model: dict[str, Any] = {
        field.name: np.array([row[field.name] for row in models], dtype=bool if field.name in flags else float)
        for field in fields(Transformer)
    }
    columns: dict[str, Any] = {
        "device": Each.of([device for device, _, _ in values]),
        "stack": Each.of([stack for _, stack, _ in values]),
        "adapters": Each.of([trained for _, _, trained in values]),
    }
    for name, hint in get_type_hints(Jobs).items():
        if name in COLUMNS and name not in columns:
            kind: type = str if hint == Names else bool if hint == Flags else float
            columns[name] = np.array([row[name] for row in jobs], dtype=kind)
    return Jobs(model=Transformer(**model), **columns)
