"""Layers of the best plans placed on stages exactly: the fastest split that memory allows, where an even one is not.

A stage that holds more micro-batches has room for fewer layers; embedding and head take time that layers make up for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from planner.cost.job import Jobs
from planner.cost.memory.footprint import Footprint, StageMemory, footprint, stage_memory
from planner.cost.memory.stage_content import StageContent, stage_content
from planner.schedules.placement import Layers, place
from planner.schedules.registry import held_at_peak
from planner.schedules.steps import Shape
from planner.space.explore import Place, Space
from planner.space.stage_passes import StagePasses, layers_between, shape_of, shared_of, stage_passes
from planner.space.to_plans import jobs_at, plan_of
from profiles.errors import PlanError
from profiles.models.transformer import Array


def placeable(space: Space, place: Place) -> bool:
    """Whether the plan's layers can be placed: one stage per rank, and all of its layers recomputed or none."""
    if not space.at.stack.habits.follows_stage_bounds or space.layouts.pipeline[place.layout] == 1:
        return False
    plan = plan_of(space, place)
    return plan.virtual_stages == 1 and not plan.recompute_layers


def placements(space: Space, places: Sequence[Place]) -> dict[Place, tuple[int, ...]]:
    """Stage bounds other than the plans' own, that are the fastest of those with room on every stage.

    Of plans that `placeable` allows.
    Model: what a stage takes grows in proportion to its layers and the micro-batches that it holds, as it does between
    one layer and one more than an even share; whether the bounds really fit is for `placed_footprint` to say.
    """
    if not places:
        return {}
    passes, probed = stage_passes(space, places), _Probes(stage_memory(jobs_at(space, places)))
    moved = {}
    for row, own in enumerate(places):
        plan = plan_of(space, own)
        shape = shape_of(plan)
        try:
            placed = place(_layers(space, passes, probed, row, shape), shape, space.at.memory_bytes)
        except PlanError:
            continue
        # The embedding goes with the first layer, the head with the last.
        bounds = (0, *(start + space.at.model.transformer.first_position for start in placed.bounds[1:]))
        if bounds != plan.stage_bounds:
            moved[own] = bounds
    return moved


class _Probes:
    """What stages of so many layers take, asked of the laws of memory. Shapes: one entry per plan."""

    def __init__(self, memory: StageMemory) -> None:
        self.memory = memory
        jobs = memory.jobs
        self.last = jobs.pipeline - 1
        self.more = np.ceil(jobs.model.num_layers / jobs.pipeline)
        kinds = jobs.model.kinds
        self.kinds = {kind: self._slopes(kind) for kind in kinds}
        nowhere = self._bytes(0 * self.last, kinds[0], 1.0), self._bytes(self.last, kinds[0], 1.0)
        self.first_bytes = self._bytes(0 * self.last, kinds[0], 1.0, is_first=True) - nowhere[0]
        self.last_bytes = self._bytes(self.last, kinds[0], 1.0, is_last=True) - nowhere[1]

    def _bytes(
        self, index: Array, kind: str, layers: float | Array, *, is_first: bool = False, is_last: bool = False
    ) -> Array:
        everywhere = np.ones(len(index), dtype=bool)
        own = {name: (layers if name == kind else 0.0) * everywhere for name in self.memory.jobs.model.kinds}
        held = self.memory.at(
            StageContent(
                index=index,
                exists=everywhere,
                is_first=is_first & everywhere,
                is_last=is_last & everywhere,
                layers=own,
            )
        )
        return held.needed_bytes + self.memory.rules.context_bytes

    def _slopes(self, kind: str) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Bytes of one layer, and of each further one, on the stage that holds most and on the one that holds least."""
        result = []
        for index in (0 * self.last, self.last):
            one, many = (self._bytes(index, kind, count) for count in (1.0, 1 + self.more))
            result.append((one, (many - one) / self.more))
        return result[0], result[1]


def _layers(space: Space, passes: StagePasses, probed: _Probes, row: int, shape: Shape) -> Layers:
    """The model's layers as the placement asks for them, the ends with those next to them."""
    model = space.at.model.transformer
    total = int(model.num_layers[0])
    before = np.arange(total + 1, dtype=float)
    held_by = held_at_peak(shape)
    most, least = held_by[0][0], held_by[-1][0]
    seconds, states, kept, working = (np.zeros(total) for _ in range(4))
    for kind in model.kinds:
        where = np.diff(model.num_before(kind, before)) > 0
        full, empty = ((float(one[row]), float(each[row])) for one, each in probed.kinds[kind])
        held = max(full[1] - empty[1], 0.0) / (most - least) if most > least else 0.0
        state = max(empty[1] - held * least, 0.0)
        seconds[where] = float((passes.ahead[kind].total + passes.again[kind].total)[row])
        states[where], kept[where] = state, held
        working[where] = max(full[0] - state - held * most, empty[0] - state - held * least)
    seconds[0] += float(passes.embedding.total[row])
    seconds[-1] += float(passes.head.total[row])
    states[0] += float(probed.first_bytes[row])
    states[-1] += float(probed.last_bytes[row])
    starts = np.array([model.cut_near((0, start)) == (0, start) for start in range(total)]) | (np.arange(total) == 0)
    return Layers(seconds=seconds, state_bytes=states, kept_bytes=kept, working_bytes=working, starts=starts)


def placed_footprint(space: Space, places: Sequence[Place], jobs: Jobs) -> Footprint:
    """Memory of `jobs`, which are the plans at `places`, with the stage bounds that the space has for them."""
    if not any(own in space.placed for own in places):
        return footprint(jobs)
    return footprint(jobs, _contents(space, places, jobs))


def _contents(space: Space, places: Sequence[Place], jobs: Jobs) -> Callable[[StageMemory, int], StageContent]:
    placed = {
        row: layers_between(space.placed[one], space.at.model.transformer)
        for row, one in enumerate(places)
        if one in space.placed
    }
    beside = {row: shared_of(space.placed[places[row]], space.at.model.transformer) for row in placed}

    def contents(laws: StageMemory, index: int) -> StageContent:
        even = stage_content(jobs, index)
        own = {kind: count.copy() for kind, count in even.layers.items()}
        shared = np.array(even.shared)
        for row, layers in placed.items():
            for kind, counts in layers.items():
                if index < len(counts):
                    own[kind][row] = counts[index]
            if index < len(beside[row]):
                shared[row] = beside[row][index]
        return replace(even, layers=own, shared=shared)

    return contents


def fullest_share(space: Space, places: Sequence[Place]) -> Array:
    """How many times the layers of an even split's fullest stage a plan's fullest has, at least 1. Shapes: (plan,)."""
    model, result = space.at.model.transformer, np.ones(len(places))
    for row, one in enumerate(places):
        if one in space.placed:
            layers = sum(layers_between(space.placed[one], model).values())
            result[row] = max(1.0, float(np.max(layers)) / np.ceil(model.num_layers[0] / len(space.placed[one])))
    return result
