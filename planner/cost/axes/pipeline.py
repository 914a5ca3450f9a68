"""Pipeline parallelism: which layers a stage has, what it sends to the next one, and how long stages stand idle."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.groups import message_element_bytes, pipeline_stride, seconds
from planner.cost.job import Jobs, Names
from planner.cost.software_time import TimeRules
from planner.cost.unit_costs import Links
from planner.schedules.laws import WAITING_SHARE
from planner.schedules.registry import schedule_of
from profiles.models.transformer import DENSE, ROUTED, Array

# Layers of some stages by kind. Shapes: one entry per job.
StageCounts = dict[str, tuple[Array, ...]]


def stage_counts(jobs: Jobs) -> StageCounts:
    """Layers of the first, a middle and the last stage, as even as they come, the ends shorter by what the job says.

    Model: dense layers lead. Where there is no middle stage, the last one stands for it. Of models whose stages are not
    alike it is every stage, for those that a job does not have its last.
    """
    model = jobs.model
    if not model.is_alike:
        return _every_stage(jobs)
    even = np.ceil((model.num_layers + jobs.first_fewer + jobs.last_fewer) / jobs.pipeline)
    first = np.where(jobs.pipeline > 1, even - jobs.first_fewer, model.num_layers)
    last = np.where(jobs.pipeline > 1, even - jobs.last_fewer, model.num_layers)
    dense_total = model.num_layers - model.num_moe_layers
    dense_first = np.where(model.is_moe, np.minimum(first, dense_total), first)
    last_dense = np.where(model.is_moe, np.where(jobs.pipeline > 1, 0.0, dense_total), last)
    has_middle = jobs.pipeline > 2
    middle = np.where(has_middle, even, last)
    middle_dense = np.where(has_middle, np.where(model.is_moe, 0.0, even), last_dense)
    dense = (dense_first, middle_dense, last_dense)
    totals = (first, middle, last)
    counts = {DENSE: dense, ROUTED: tuple(total - count for total, count in zip(totals, dense, strict=True))}
    return {kind: counts[kind] for kind in model.kinds}


def _every_stage(jobs: Jobs) -> StageCounts:
    model, stages = jobs.model, range(int(jobs.pipeline.max(initial=1)))
    starts = [layers_before(jobs, np.minimum(stage, jobs.pipeline - 1)) for stage in stages]
    stops = [layers_before(jobs, np.minimum(stage + 1, jobs.pipeline)) for stage in stages]
    return {
        kind: tuple(
            model.num_before(kind, stop) - model.num_before(kind, start)
            for start, stop in zip(starts, stops, strict=True)
        )
        for kind in model.kinds
    }


def layers_before(jobs: Jobs, index: Array) -> Array:
    """Layers of the stages before stage `index`: as even as they come, earlier stages first. Shapes: per job."""
    model, pipeline = jobs.model, jobs.pipeline
    places = model.num_layers + jobs.first_fewer + jobs.last_fewer
    even = np.floor(places / pipeline) * index + np.minimum(np.mod(places, pipeline), index) - jobs.first_fewer
    return np.where(index == 0, 0.0, np.minimum(even, model.num_layers))


def message_seconds(jobs: Jobs, rules: TimeRules, links: Links) -> Array:
    """Seconds of sending one micro-batch's activations to the next stage, 0 without a pipeline.

    Model: with sequence parallelism, and where the stack cuts its messages up, a rank
    sends its share alone. Source: Narayanan et al. 2021 (arXiv 2104.04473), section 4.1.
    """
    shared = jobs.sequence_parallel | (rules.scatters_pipeline > 0)
    num_bytes = jobs.tokens * jobs.model.hidden_size * message_element_bytes(jobs) / np.where(shared, jobs.tensor, 1.0)
    pair = np.where(jobs.pipeline > 1, 2.0, 1.0)
    return seconds(jobs, links, "send_receive", num_bytes, pair, pipeline_stride(jobs))


def idle_terms(pipeline: Array, chunks: Array, count: Array) -> tuple[Array, Array]:
    """Idle seconds as multiples: of what a micro-batch takes on all other stages, and on the slowest one.

    Model: 1F1B and GPipe wait for the others once; interleaving divides that by the chunks, but waits for whole rounds.
    Source: Narayanan et al. 2021 (arXiv 2104.04473). Shapes: one entry per job.
    """
    parts = np.maximum(chunks, 1.0)
    missing = np.mod(-count, pipeline)
    filling = np.where(pipeline > 1, 1 / parts, 0.0)
    return filling, np.where((pipeline > 1) & (parts > 1), (parts - 1) / parts * missing, 0.0)


def bubble_left(schedule: str, pipeline: Array, forward: Array, weight: Array) -> Array:
    """Share of 1F1B's bubble that a schedule leaves which does weight gradients apart; 1 for one that does not.

    `forward` and `weight` are the shares of forward F and of weight gradients W in what a chunk takes, input gradients
    I the rest. Shapes: broadcast.
    """
    return np.asarray(schedule_of(schedule).bubble_left(pipeline, forward, weight))


def bubbles_left(schedules: Names, pipeline: Array, forward: Array, weight: Array) -> Array:
    """The same where plans differ in their schedules, along the first axis of `schedules`. Shapes: broadcast."""
    names = np.unique(schedules)
    if len(names) == 1:
        return bubble_left(str(names[0]), pipeline, forward, weight)
    axis = -schedules.ndim
    result = np.empty(np.broadcast_shapes(schedules.shape, np.shape(pipeline), forward.shape, weight.shape))
    of_schedule = np.moveaxis(result, axis, 0)
    for name in names:
        which = np.flatnonzero(schedules.reshape(-1) == name)
        left = np.moveaxis(bubble_left(str(name), pipeline, forward, weight), axis, 0)
        of_schedule[which] = left[which] if len(left) > 1 else left
    return result


def open_chunks(schedule: Names, pipeline: Array, chunks: Array, count: Array) -> Array:
    """Chunks of a rank whose backward passes have begun and are not done, at the most. Shapes: one entry per job."""
    result = np.ones(np.shape(schedule))
    for name in np.unique(schedule):
        result = np.where(schedule == name, schedule_of(str(name)).open_chunks(pipeline, chunks, count), result)
    return result


def held_microbatches(schedule: str, pipeline: Array, chunks: Array, count: Array, stage: Array) -> Array:
    """Micro-batches whose activations a stage holds at its fullest, in whole stages. Shapes: one entry per job.

    Those whose weight gradients still wait keep the gradients of what their linears gave as well, WAITING_SHARE as
    much again.
    """
    rules = schedule_of(schedule)
    most_of_step = count * (1 + WAITING_SHARE if rules.waits else 1.0)
    return np.where(pipeline > 1, np.minimum(rules.held(pipeline, chunks, count, stage), most_of_step), 1.0)
