"""Pipelines across two pools timed again by replay, every stage with its own layers, forward and backward apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.mixed.stages import Dealt, stage_content
from planner.schedules.registry import USUAL
from planner.schedules.replay import PipelineSeconds
from planner.schedules.steps import Shape
from planner.space.replay_best import makespans
from planner.space.stage_passes import StageLayers
from profiles.models.transformer import Array

# How many of the best plans are timed again.
MOST_REPLAYED = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A plan of `dealt` timed by replay: the whole pipeline, without messages, and the busiest stage alone."""

    dealt: Dealt
    row: int
    shape: Shape
    stages: PipelineSeconds
    makespan_seconds: float
    silent_seconds: float

    @property
    def step_seconds(self) -> float:
        """Seconds of a step of ranks that are equally fast."""
        return self.makespan_seconds + float(self.dealt.once_seconds[self.row])


def layers_of(dealt: Dealt, row: int) -> StageLayers:
    """The layers of a plan's stages by kind, all or none recomputed."""
    contents = [stage_content(dealt, row, stage) for stage in range(dealt.layers.shape[1])]
    count = {kind: np.array([own.layers[kind][0] for own in contents]) for kind in contents[0].layers}
    again = float(dealt.rows.recompute[row] != "none")
    return StageLayers(count=count, recomputed={kind: own * again for kind, own in count.items()})


def replayed(dealt: Dealt, row: int) -> Timed:
    """A plan timed again, every stage with its own layers and forward and backward apart."""
    layers = layers_of(dealt, row)
    stages = dealt.layers.shape[1]
    on_second = np.arange(stages) >= dealt.second

    def seconds(part: str) -> Array:
        first, second = (getattr(own, part)(layers, row, lambda piece: piece.total) for own in dealt.passes)
        return np.asarray(np.where(on_second, second, first))[:, None]

    forward, backward = seconds("forward"), seconds("backward")
    message = dealt.message_seconds[row][:, None]
    own = PipelineSeconds(forward=forward, backward=backward, weight=np.zeros_like(forward), message=message)
    shape = Shape(USUAL, stages, 1, int(dealt.rows.count[row]))
    both = PipelineSeconds(
        forward=np.repeat(forward, 2, axis=1),
        backward=np.repeat(backward, 2, axis=1),
        weight=np.zeros((stages, 2)),
        message=np.concatenate([message, 0 * message], axis=1),
    )
    makespan, silent = makespans(shape, both)
    return Timed(
        dealt=dealt, row=row, shape=shape, stages=own, makespan_seconds=float(makespan), silent_seconds=float(silent)
    )


def best_across_stages(tables: list[Dealt]) -> list[Timed]:
    """The fastest plans by the closed form, timed again by replay and in the order of that."""
    ranked = sorted(
        (float(own.step_seconds[row]), number, int(row))
        for number, own in enumerate(tables)
        for row in np.flatnonzero(own.fits)
    )
    timed = [replayed(tables[number], row) for _, number, row in ranked[:MOST_REPLAYED]]
    return sorted(timed, key=lambda own: own.step_seconds)
