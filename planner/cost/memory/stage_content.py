"""Which layers a pipeline stage holds, by kind: as even as they come, or as the software cuts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planner.cost.axes.pipeline import layers_before
from planner.cost.job import Jobs
from planner.cost.software_memory import MemoryRules
from planner.schedules.registry import has
from profiles.models.transformer import Array, Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContent:
    """What one pipeline stage of every job holds, layers by kind; `exists` where the job has that stage.

    Shapes: one entry per job.
    """

    index: Array
    exists: Flags
    is_first: Flags
    is_last: Flags
    layers: Mapping[str, Array]


def stage_content(jobs: Jobs, rules: MemoryRules, index: int | Array, is_v: bool | Flags | None = None) -> StageContent:
    """Layers of stage `index`, one number or one per job; through a V where `is_v`, or the jobs' schedules, say so.

    Model: as even as they come, the first and last shorter by what the job says; dense ones lead. A stage's first
    chunk starts after those of the stages before it. Where layers do not divide evenly, earlier stages have the larger
    share. Stacks that cut by parameters weigh the head, and a layer belongs to the earlier of
    two stages that share it.
    """
    model, pipeline = jobs.model, jobs.pipeline
    index = np.broadcast_to(np.asarray(index, dtype=np.float64), pipeline.shape)
    is_first, is_last = index == 0, pipeline == index + 1
    through_v = has(jobs.schedule, lambda each: each.stages.is_v) if is_v is None else is_v
    before, after = _layers_before(jobs, rules, index), _layers_before(jobs, rules, index + 1)
    layers = np.where(
        pipeline > 1, np.maximum(np.where(is_last, model.num_layers, after) - before, 0.0), model.num_layers
    )
    chunks = np.maximum(jobs.chunks, 1.0)
    first = before / chunks
    return StageContent(
        index=index,
        exists=pipeline > index,
        is_first=is_first,
        # A V comes back to the first rank, which so has both ends of the model.
        is_last=np.where(through_v, is_first, is_last),
        layers=layers_from(jobs, first, layers, layers / chunks),
    )


def layers_from(jobs: Jobs, before: Array, layers: Array, of_first_chunk: Array) -> dict[str, Array]:
    """So many layers of a stage by kind, of which the first chunk's follow those `before` it.

    Model: all but the first chunk's are of the kind that comes last. Shapes: one entry per job.
    """
    model = jobs.model
    result = {}
    left = layers
    for kind in model.kinds:
        until = model.num_before(kind, before + of_first_chunk) - model.num_before(kind, before)
        is_last = model.num_before(kind, model.num_layers) > model.num_before(kind, model.num_layers - 1)
        result[kind] = np.where(is_last, left, until)
        left = left - result[kind]
    return result


def _layers_before(jobs: Jobs, rules: MemoryRules, index: Array) -> Array:
    """Layers of the stages before stage `index`."""
    model, pipeline = jobs.model, jobs.pipeline
    head = model.vocab_size * model.hidden_size / model.dense_layer_parameters
    cut = np.ceil((model.num_layers + head) * index / pipeline)
    cut = np.where(index == 0, 0.0, np.minimum(cut, model.num_layers))
    return np.where(rules.cuts_by_parameters, cut, layers_before(jobs, index))
