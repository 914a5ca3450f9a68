"""Places in the space as plans, and what each would take part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from planner.cost.job import Jobs
from planner.plans import AXES, Plan, Recompute
from planner.schedules.registry import schedule_of
from planner.space.best import Best
from planner.space.block import Tables, block, step_seconds
from planner.space.explore import Place, Space
from planner.space.layouts import Ints
from planner.space.question import Setting
from planner.space.schedule_choices import METHODS, hides_messages
from planner.space.tables import layout_jobs

DATA_OUTSIDE = ("tensor", "context", "pipeline", "data")


def best_places(space: Space, count: int) -> list[Place]:
    """The fastest plans, one per layout and schedule."""
    best = space.best
    columns = (best.layout[:count], best.micro_batch[:count], best.schedule[:count], best.recompute[:count])
    return [Place(*map(int, row)) for row in zip(*columns, strict=True)]


def place_at(space: Space, row: int) -> Place:
    """The plan that comes after `row` faster ones, each the best of its layout and schedule."""
    return place_in(space.best, row)


def place_in(plans: Best, row: int) -> Place:
    """The plan in a row of those that a search kept."""
    return Place(*(int(column[row]) for column in (plans.layout, plans.micro_batch, plans.schedule, plans.recompute)))


def closed_seconds(space: Space, tables: Tables, place: Place, row: int) -> float:
    """What the closed form says of a plan's step, by `tables` in which its layout has this row."""
    own = block(tables, np.array([row]), space.choices(place.layout))
    return float(step_seconds(own)[0, place.micro_batch, place.schedule, place.recompute])


def plan_of(space: Space, place: Place) -> Plan:
    """The plan at `place`, with the first layer of each stage."""
    row, choices = space.layouts.row(place.layout), space.choices(place.layout)
    name, chunks = choices.schedules[place.schedule], int(choices.chunks[place.schedule])
    method, layers = METHODS[choices.method[place.recompute]], int(choices.layers[place.recompute])
    model = space.at.model
    counts = stage_layers(model.num_layers, row["pipeline"], chunks, row["first_fewer"], row["last_fewer"])
    even = model.transformer.cut_near((0, *np.cumsum(counts)[:-1].tolist()))
    counts = np.diff([*even, model.num_layers]).tolist()
    return plan_with(
        space.at,
        row,
        stage_bounds=space.placed.get(place) or bounds_of(counts, model.transformer.first_position),
        micro_batch=choices.micro_batch[place.micro_batch],
        count=choices.count[place.micro_batch],
        schedule=name,
        chunks=chunks,
        method=method,
        recompute_layers=_recomputed(counts, layers, row["pipeline"], chunks, method),
    )


def plan_with(
    at: Setting,
    layout: Mapping[str, int],
    *,
    stage_bounds: tuple[int, ...],
    micro_batch: float,
    count: float,
    schedule: str,
    method: str,
    chunks: int = 1,
    recompute_layers: tuple[int, ...] = (),
) -> Plan:
    """The plan of one layout, a row of `Layouts`, with what is chosen beside it; `method` is of recomputation."""
    is_hybrid = layout["zero_stage"] == 3 and layout["shard"] < layout["data"] * layout["context"]
    return Plan(
        data_parallel=layout["data"],
        tensor_parallel=layout["tensor"],
        pipeline_parallel=layout["pipeline"],
        context_parallel=layout["context"],
        expert_parallel=layout["expert"],
        shard_degree=layout["shard"] if is_hybrid else 0,
        sequence_parallel=bool(layout["sequence_parallel"]),
        vocab_parallel=bool(layout["vocab_parallel"]),
        axis_order=DATA_OUTSIDE if layout["data_outside"] else AXES,
        micro_batch_size=int(micro_batch),
        num_microbatches=int(count),
        stage_bounds=stage_bounds,
        virtual_stages=chunks,
        schedule=schedule,
        zero_stage=layout["zero_stage"],
        recompute=cast(Recompute, method),
        recompute_layers=recompute_layers,
        offload=(
            "optimizer" if layout["optimizer_offload"] else "activations" if layout["activation_offload"] else "none"
        ),
        compiled=at.compiled,
        precision=at.precision,
        codec=at.codec,
    )


def bounds_of(counts: Sequence[int] | Ints, first_position: int = 1) -> tuple[int, ...]:
    """The first layer of each stage, of so many layers each, the first at a position; an embedding goes with it."""
    return (0, *(int(start) + first_position for start in np.cumsum(counts)[:-1]))


def stage_layers(num_layers: int, pipeline: int, chunks: int, first_fewer: int, last_fewer: int) -> list[int]:
    """Layers of every stage in model order: as even as they come, earlier ones first, ends as the layout says."""
    stages = pipeline * chunks
    whole = num_layers + first_fewer + last_fewer
    counts = [whole // stages + (stage < whole % stages) for stage in range(stages)]
    counts[0] -= first_fewer
    counts[-1] -= last_fewer
    return counts


def _recomputed(counts: list[int], layers: int, pipeline: int, chunks: int, method: str) -> tuple[int, ...]:
    """How many layers of each stage are recomputed; empty where all or none are."""
    most = -(-sum(counts) // pipeline)
    if method != "full" or layers >= most:
        return ()
    of_chunk = [layers // chunks + (chunk < layers % chunks) for chunk in range(chunks)]
    return tuple(min(count, of_chunk[stage // pipeline]) for stage, count in enumerate(counts))


def jobs_at(space: Space, places: Sequence[Place], method: str | None = None) -> Jobs:
    """The plans at `places` as jobs, recomputed as they say or, where given, by `method`."""
    jobs = layout_jobs(space.at, space.layouts.take(np.array([place.layout for place in places])))
    choices = [space.choices(place.layout) for place in places]
    pairs = list(zip(choices, places, strict=True))
    names = [own.schedules[place.schedule] for own, place in pairs]
    return replace(
        jobs,
        micro_batch=np.array([own.micro_batch[place.micro_batch] for own, place in pairs]),
        num_microbatches=np.array([own.count[place.micro_batch] for own, place in pairs]),
        chunks=np.array([own.chunks[place.schedule] for own, place in pairs]),
        schedule=np.array([schedule_of(name).name for name in names]),
        recompute=np.array([method or METHODS[own.method[place.recompute]] for own, place in pairs]),
        overlap_pipeline=np.array([hides_messages(space.at, name) for name in names]),
    )
