"""Plans timed again by exact replay of their schedules, stage by stage: what the closed form leaves out.

The closed form knows three stages and the textbooks' bubbles. Here every stage has the layers that the plan gives it,
forward and backward apart, and messages delay only what waits for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.layers import Pass
from planner.plans import Plan
from planner.schedules.registry import schedule, stage_ranks
from planner.schedules.replay import PipelineSeconds, replay_plans
from planner.schedules.steps import STAGES_OF_V, Shape
from planner.space.best import Best
from planner.space.block import block, step, straggling
from planner.space.explore import Place, Space
from planner.space.memory import memories
from planner.space.place_layers import fullest_share, placeable, placed_footprint, placements
from planner.space.stage_passes import (
    StagePasses,
    beside_and_waited,
    layers_between,
    shape_of,
    stage_layers,
    stage_passes,
)
from planner.space.to_plans import best_places, jobs_at, plan_of
from planner.terminal.progress import OnProgress, silent
from profiles.models.transformer import Array

# How many of the best plans are timed again; passes of all stages that are replayed one by one.
MOST_PLANS, MOST_PASSES = 200, 2048
# How many of those have their layers placed exactly, and what that must gain: an even split is simpler.
MOST_PLACED, WORTH_PLACING_FRACTION = 40, 0.002
# Up to how many stages, and micro-batches per stage, boundaries are moved further by replay, and how often at most.
MOST_MOVED_STAGES, MOVED_MICRO_BATCHES, MOST_MOVES = 4, 4, 16
# After how many periods a pipeline goes on as it is, with one or two chunks and with more: then the step is off by at
# most 1.5 %, measured over stages that differ by 20 % and messages up to 5 % of a forward (tests/test_retime.py).
SETTLED_PERIODS = (10, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retimed:
    """A plan's pipeline, and its seconds by replay: in all, without messages, and busy on the slowest rank."""

    shape: Shape
    stages: PipelineSeconds
    makespan_seconds: float
    silent_seconds: float
    busy_seconds: float


def retimed(space: Space, places: Sequence[Place]) -> dict[Place, Retimed]:
    """What replay says of the plans at `places` that have a pipeline; equal shapes are replayed together."""
    piped = [place for place in places if space.layouts.pipeline[place.layout] > 1]
    if not piped:
        return {}
    groups: dict[Shape, list[int]] = {}
    columns = stage_seconds(space, piped)
    for index, (shape, _) in enumerate(columns):
        groups.setdefault(shape, []).append(index)
    result = {}
    for shape, members in groups.items():
        seconds = _beside([columns[index][1] for index in members])
        without = replace(seconds, message=np.zeros_like(seconds.message))
        spans, silent = np.split(makespans(shape, _beside([seconds, without])), 2)
        owns = np.arange(shape.num_ranks)[:, None] == stage_ranks(shape)
        busy = shape.num_microbatches * (owns @ (seconds.forward + seconds.backward)).max(axis=0)
        for column, index in enumerate(members):
            result[piped[index]] = Retimed(
                shape=shape,
                stages=columns[index][1],
                makespan_seconds=float(spans[column]),
                silent_seconds=float(silent[column]),
                busy_seconds=float(busy[column]),
            )
    return result


def stage_seconds(space: Space, places: Sequence[Place]) -> list[tuple[Shape, PipelineSeconds]]:
    """The shape of each plan's pipeline, and one micro-batch on its stages. Shapes: (stage, 1)."""
    plans = (plan_of(space, place) for place in places)
    return [
        (shape_of(plan), _of_stages(space, plan, own.row, own.passes))
        for plan, own in zip(plans, _whatever_bounds(space, places), strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _WhateverBounds:
    """A plan's passes, of which it is row `row`, and what the closed form says of its step and its pipeline."""

    passes: StagePasses
    row: int
    total_seconds: float
    pipelined_seconds: float


def _whatever_bounds(space: Space, places: Sequence[Place]) -> list[_WhateverBounds]:
    """What is the same of the plans at `places` wherever their stages begin; what was asked before is known."""
    unknown = list(dict.fromkeys(place for place in places if place not in space.replayed))
    if unknown:
        passes, closed = stage_passes(space, unknown), _closed_form(space, unknown)
        for row, place in enumerate(unknown):
            total, pipelined = closed[place]
            space.replayed[place] = _WhateverBounds(
                passes=passes, row=row, total_seconds=total, pipelined_seconds=pipelined
            )
    return [space.replayed[place] for place in places]


def _closed_form(space: Space, places: Sequence[Place]) -> dict[Place, tuple[float, float]]:
    """Seconds of the step and of its pipeline by the closed form; layouts that are a block together are one."""
    columns = space.layouts.pipeline, space.layouts.data, space.layouts.zero_stage, space.layouts.activation_offload
    blocks: dict[tuple[int, ...], list[Place]] = {}
    for place in places:
        blocks.setdefault(tuple(int(column[place.layout]) for column in columns), []).append(place)
    result = {}
    for members in blocks.values():
        layouts = list(dict.fromkeys(place.layout for place in members))
        own = block(space.tables, np.array(layouts), space.choices(layouts[0]))
        closed = step(own)
        total, pipelined = (np.broadcast_to(each, own.shape) for each in (closed.total, closed.pipelined))
        for place in members:
            where = (layouts.index(place.layout), place.micro_batch, place.schedule, place.recompute)
            result[place] = float(total[where]), float(pipelined[where] * straggling(space.tables))
    return result


def replay_offsets(space: Space, places: Sequence[Place], timed: Mapping[Place, Retimed] | None = None) -> Array:
    """Seconds to add to what the closed form says of the step of each plan. Shapes: (plan,)."""
    timed = retimed(space, places) if timed is None else timed
    result, share = np.zeros(len(places)), fullest_share(space, places)
    rows = [row for row, place in enumerate(places) if place in timed]
    for row, own in zip(rows, _whatever_bounds(space, [places[row] for row in rows]), strict=True):
        # What is done once a step is the fullest stage's: its gradients, its parameters.
        once = (own.total_seconds - own.pipelined_seconds) * (share[row] - 1)
        makespan = timed[places[row]].makespan_seconds * straggling(space.tables)
        result[row] = makespan - own.pipelined_seconds + once
    return result


def _total(own: Pass) -> Array:
    return own.total


def _of_stages(space: Space, plan: Plan, row: int, passes: StagePasses) -> PipelineSeconds:
    """One micro-batch on the stages of a plan, some of whose layers are recomputed."""
    layers = stage_layers(plan, space.at.model.transformer)
    slower, waited = beside_and_waited(space, plan, passes, row)
    columns = {
        "forward": passes.forward(layers, row, _total) + slower,
        "backward": passes.backward(layers, row, _total) + slower,
        "weight": passes.weights(layers, row),
        "message": np.broadcast_to(waited, len(plan.stage_bounds)),
    }
    return PipelineSeconds(**{name: values[:, None] for name, values in columns.items()})


def _beside(columns: Sequence[PipelineSeconds]) -> PipelineSeconds:
    """Plans of one shape as columns of one table."""
    return PipelineSeconds(
        **{
            name: np.concatenate([getattr(own, name) for own in columns], axis=1)
            for name in ("forward", "backward", "weight", "message")
        }
    )


def makespans(shape: Shape, seconds: PipelineSeconds) -> Array:
    """Seconds until the last rank is done. Shapes: (plan,).

    Model: a settled pipeline repeats itself, so that of very many micro-batches some are replayed, and some more, and
    the rest goes on at that pace.
    """
    period = schedule(shape.schedule).period(shape)
    few = period * SETTLED_PERIODS[shape.virtual_stages > STAGES_OF_V] + shape.num_microbatches % period
    if shape.num_stages * shape.num_microbatches <= MOST_PASSES or shape.num_microbatches <= few + period:
        return replay_plans(shape, seconds).step_seconds
    first, second = (
        replay_plans(replace(shape, num_microbatches=count), seconds).step_seconds for count in (few, few + period)
    )
    return np.asarray(first + (second - first) * (shape.num_microbatches - few) / period)


def in_order(space: Space, count: int = MOST_PLANS, on_progress: OnProgress = silent) -> Space:
    """The space with its `count` best plans timed again and ranked anew; the others follow as they were.

    Of the very best, layers are placed on stages as suits each, where that gains enough.
    """
    places = best_places(space, min(count, len(space.best)))
    seconds, held = space.best.step_seconds.copy(), space.best.device_bytes.copy()
    on_progress(0.0, f"replaying the best {len(places)}")
    seconds[: len(places)] += replay_offsets(space, places)
    fastest = np.argsort(seconds[: len(places)], kind="stable")
    first = list(itertools.islice((int(row) for row in fastest if placeable(space, places[row])), MOST_PLACED))
    on_progress(0.3, f"placing the layers of the best {len(first)}")
    placed = _gaining(space, [places[row] for row in first], seconds[first])
    for row in first:
        if places[row] in placed:
            _, seconds[row], held[row] = placed[places[row]]
    order = np.arange(len(seconds))
    order[: len(places)] = np.lexsort((np.arange(len(places)), seconds[: len(places)]))
    columns = {name: getattr(space.best, name)[order] for name in ("layout", "micro_batch", "schedule", "recompute")}
    best = Best(step_seconds=seconds[order], device_bytes=held[order], **columns)
    return replace(space, best=best, placed={own: bounds for own, (bounds, _, _) in placed.items()})


def fastest_bounds(space: Space, places: Sequence[Place]) -> dict[Place, tuple[int, ...]]:
    """Stage bounds other than the plans' own that are faster, of plans that `placeable` allows.

    Model: the placement makes the slowest stage fast. Where micro-batches are few, filling and draining count as much,
    which the first stages wait for and the last does not: from there each boundary goes a layer at a time as far as
    replay says that the step gets faster, and memory allows.
    """
    found = placements(space, places)
    best = {place: found.get(place, plan_of(space, place).stage_bounds) for place in places if _is_short(space, place)}
    if not best:
        return found
    seconds = dict(zip(best, replay_offsets(replace(space, placed=best), list(best)).tolist(), strict=True))
    moving = set(best)
    for _ in range(MOST_MOVES):
        moved = set()
        for boundary, by in itertools.product(range(1, MOST_MOVED_STAGES), (-1, 1)):
            tried = {place: _with_boundary(space, best[place], boundary, by) for place in best if place in moving}
            own = replace(space, placed={place: bounds for place, bounds in tried.items() if bounds})
            chosen = _can_hold(own, list(own.placed))
            for place, after in zip(chosen, replay_offsets(own, chosen).tolist() if chosen else (), strict=True):
                if after < seconds[place]:
                    best[place], seconds[place] = own.placed[place], after
                    moved.add(place)
        if not moved:
            break
        moving = moved
    return found | {place: bounds for place, bounds in best.items() if bounds != plan_of(space, place).stage_bounds}


def _is_short(space: Space, place: Place) -> bool:
    plan = plan_of(space, place)
    return (
        plan.pipeline_parallel <= MOST_MOVED_STAGES
        and plan.num_microbatches <= MOVED_MICRO_BATCHES * plan.pipeline_parallel
    )


def _with_boundary(space: Space, bounds: tuple[int, ...], boundary: int, by: int) -> tuple[int, ...] | None:
    """The bounds with one boundary moved; None where there is none, or a stage would be left without a layer."""
    if boundary >= len(bounds):
        return None
    moved = (*bounds[:boundary], bounds[boundary] + by, *bounds[boundary + 1 :])
    model = space.at.model.transformer
    layers = sum(layers_between(moved, model).values())
    return moved if np.min(layers) >= 1 and model.cut_near(moved) == moved else None


def _can_hold(space: Space, places: Sequence[Place]) -> list[Place]:
    """The places whose bounds leave room on every stage."""
    held = placed_footprint(space, places, jobs_at(space, places)).device_bytes if places else ()
    return [place for place, taken in zip(places, held, strict=True) if taken <= space.at.memory_bytes]


def _gaining(
    space: Space, places: Sequence[Place], seconds: Array
) -> dict[Place, tuple[tuple[int, ...], float, float]]:
    """Stage bounds, seconds and bytes of those plans that are faster with their layers placed exactly, and fit."""
    placed = fastest_bounds(space, places)
    own = replace(space, placed=placed)
    tried = [index for index, place in enumerate(places) if place in placed]
    chosen = [places[index] for index in tried]
    if not chosen:
        return {}
    closed = seconds[tried] - replay_offsets(space, chosen)
    after = closed + replay_offsets(own, chosen)
    faster = np.flatnonzero(after < seconds[tried] * (1 - WORTH_PLACING_FRACTION)).tolist()
    held = memories(own, [chosen[row] for row in faster])
    return {
        chosen[row]: (placed[chosen[row]], float(after[row]), memory.device)
        for row, memory in zip(faster, held, strict=True)
        if memory.device <= space.at.memory_bytes and memory.offloaded <= space.at.host_memory_bytes
    }
