"""Which layers a pipeline stage holds, by kind: as even as they come, or as the software cuts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planner.cost.axes.pipeline import layers_from, stage_span
from planner.cost.job import Jobs
from planner.schedules.registry import has
from profiles.models.transformer import Array, Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContent:
    """What one pipeline stage of every job holds, layers by kind; `exists` where the job has that stage.

    `shared` are parameters that it holds beside those of its layers, as earlier stages do. Shapes: one entry per job.
    """

    index: Array
    exists: Flags
    is_first: Flags
    is_last: Flags
    layers: Mapping[str, Array]
    shared: Array | float = 0.0


def stage_content(jobs: Jobs, index: int | Array, is_v: bool | Flags | None = None) -> StageContent:
    """Layers of stage `index`, one number or one per job; through a V where `is_v`, or the jobs' schedules, say so.

    Model: as even as they come, the first and last shorter by what the job says; dense ones lead. A stage's first
    chunk starts after those of the stages before it. Layers are cut as time has them (planner/cost/axes/pipeline).
    """
    pipeline = jobs.pipeline
    index = np.broadcast_to(np.asarray(index, dtype=np.float64), pipeline.shape)
    is_first, is_last = index == 0, pipeline == index + 1
    through_v = has(jobs.schedule, lambda each: each.stages.is_v) if is_v is None else is_v
    before, layers = stage_span(jobs, index)
    chunks = np.maximum(jobs.chunks, 1.0)
    first = before / chunks
    return StageContent(
        index=index,
        exists=pipeline > index,
        is_first=is_first,
        # A V comes back to the first rank, which so has both ends of the model.
        is_last=np.where(through_v, is_first, is_last),
        layers=layers_from(jobs, first, layers, layers / chunks),
        shared=jobs.model.shared_parameters(before, before + layers),
    )
