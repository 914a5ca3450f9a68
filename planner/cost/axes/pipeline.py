"""Pipeline parallelism: which layers a stage has, what it sends to the next one, and how long stages stand idle."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.groups import message_element_bytes, pipeline_stride, seconds
from planner.cost.job import Jobs, Names
from planner.cost.software_time import TimeRules
from planner.cost.unit_costs import Links
from planner.schedules.laws import WAITING_SHARE
from planner.schedules.registry import schedule_of
from profiles.models.traced_sizes import TracedSizes
from profiles.models.transformer import Array, Flags

# Layers of some stages by kind. Shapes: one entry per job.
StageCounts = dict[str, tuple[Array, ...]]


def stage_counts(jobs: Jobs) -> StageCounts:
    """Layers of the first, the fullest in the midst, and the last stage, as memory has them.

    Where there is no middle stage, the last one stands for it. Where dense layers lead there is the first stage
    without any as well. Of models whose stages are not alike it is every stage, for those that a job does not have its
    last. Ignores: chunks, which deal leading layers out to more ranks.
    """
    model, last = jobs.model, jobs.pipeline - 1
    places = [np.zeros(len(jobs)), _fullest_between(jobs), last]
    leading = model.num_of(model.kinds[0])
    if not model.is_alike:
        places = [np.minimum(float(stage), last) for stage in range(int(jobs.pipeline.max(initial=1)))]
    elif np.any((leading > 0) & (leading < model.num_layers)):
        least = np.maximum(np.floor((model.num_layers + jobs.first_fewer + jobs.last_fewer) / jobs.pipeline), 1.0)
        places.insert(2, np.clip(np.ceil((leading + jobs.first_fewer) / least), np.minimum(1.0, last), last))
    stages = [layers_from(jobs, before, layers, layers) for before, layers in (stage_span(jobs, one) for one in places)]
    return {kind: tuple(stage[kind] for stage in stages) for kind in model.kinds}


def _fullest_between(jobs: Jobs) -> Array:
    """The stage in the midst that has most layers, or the last where there is none: the second, if cuts are even."""
    last = jobs.pipeline - 1
    result, is_cut = np.minimum(1.0, last), _cuts_by_parameters(jobs)
    if np.any(is_cut):
        most = stage_span(jobs, result)[1]
        for stage in range(2, int(last[is_cut].max())):
            _, layers = stage_span(jobs, np.minimum(float(stage), last))
            is_fuller = is_cut & (stage < last) & (layers > most)
            result, most = np.where(is_fuller, float(stage), result), np.where(is_fuller, layers, most)
    return result


def stage_span(jobs: Jobs, index: Array) -> tuple[Array, Array]:
    """Layers before stage `index` of every job, and its own. Shapes: one entry per job."""
    before, after = layers_before(jobs, index), layers_before(jobs, index + 1)
    own = np.maximum(np.where(index + 1 >= jobs.pipeline, jobs.model.num_layers, after) - before, 0.0)
    return before, own


def layers_before(jobs: Jobs, index: Array) -> Array:
    """Layers of the stages before stage `index`: as even as can be, or as the software cuts. Shapes: per job.

    Model: where a stage should begin and the model cannot be cut, it begins at the nearest place where it can.
    """
    even = _evenly_before(jobs, index)
    if jobs.model.can_cut_anywhere:
        return even
    columns = np.stack([jobs.pipeline, jobs.first_fewer, jobs.last_fewer, np.broadcast_to(index, even.shape)])
    distinct, first, which = np.unique(columns, axis=1, return_index=True, return_inverse=True)
    values = even[first]
    for number, (pipeline, stage) in enumerate(zip(distinct[0], distinct[3], strict=True)):
        if 0 < stage < pipeline:
            one = jobs.take(first[number : number + 1])
            bounds = tuple(int(_evenly_before(one, np.array([float(i)]))[0]) for i in range(int(pipeline)))
            values[number] = jobs.model.cut_near(bounds)[int(stage)]
    return np.asarray(values[which.reshape(-1)])


def _evenly_before(jobs: Jobs, index: Array) -> Array:
    """The same, wherever that is.

    Model: earlier stages have one more where layers do not divide, the ends are shorter by what the job says. Stacks
    that cut by parameters weigh the head, and a layer belongs to the earlier of two stages that share it.
    """
    model, pipeline = jobs.model, jobs.pipeline
    places = model.num_layers + jobs.first_fewer + jobs.last_fewer
    even = np.floor(places / pipeline) * index + np.minimum(np.mod(places, pipeline), index) - jobs.first_fewer
    is_cut = _cuts_by_parameters(jobs)
    if np.any(is_cut):
        head = model.vocab_size * model.hidden_size / model.dense_layer_parameters
        even = np.where(is_cut, np.ceil((model.num_layers + head) * index / pipeline), even)
    return np.where(index == 0, 0.0, np.minimum(even, model.num_layers))


def _cuts_by_parameters(jobs: Jobs) -> Flags:
    return jobs.stack.read(lambda stack: float(stack.memory.cuts_by_parameters)) > 0


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


def message_seconds(jobs: Jobs, rules: TimeRules, links: Links) -> Array:
    """Seconds of sending one micro-batch's activations to the next stage, 0 without a pipeline.

    Model: of stages that send more and less, the most.
    """
    return sent_seconds(jobs, rules, links, message_bytes(jobs))


def message_bytes(jobs: Jobs) -> Array:
    """Bytes of what one micro-batch gives to the next stage: hidden states, or all that a trace says crosses."""
    model = jobs.model
    if not isinstance(model, TracedSizes) or model.can_cut_anywhere:
        return np.asarray(jobs.tokens * model.hidden_size * message_element_bytes(jobs))
    most = np.zeros(len(jobs))
    for stage in range(1, int(jobs.pipeline.max(initial=1))):
        position = layers_before(jobs, np.full(len(jobs), float(stage)))
        received = model.received_bytes(position, jobs.micro_batch)
        most = np.maximum(most, np.where(stage < jobs.pipeline, received, 0.0))
    return most


def sent_seconds(jobs: Jobs, rules: TimeRules, links: Links, whole: Array) -> Array:
    """Seconds of sending so many bytes of one micro-batch to the next stage.

    Model: with sequence parallelism, and where the stack cuts its messages up, a rank
    sends its share alone; tensor-parallel ranks that need the whole gather it then.
    Source: Narayanan et al. 2021 (arXiv 2104.04473), section 4.1.
    """
    cut = (rules.scatters_pipeline > 0) & ~jobs.sequence_parallel
    num_bytes = whole / np.where(cut | jobs.sequence_parallel, jobs.tensor, 1.0)
    pair, one = np.where(jobs.pipeline > 1, 2.0, 1.0), np.ones(len(jobs))
    sent = seconds(jobs, links, "send_receive", num_bytes, pair, pipeline_stride(jobs))
    gathered = np.where(cut & (jobs.pipeline > 1), jobs.tensor, 1.0)
    return sent + seconds(jobs, links, "all_gather", whole, gathered, one)


def idle_terms(pipeline: Array, chunks: Array, count: Array) -> tuple[Array, Array]:
    """Idle seconds as multiples: of what a micro-batch takes on all other stages, and on the slowest one.

    Model: 1F1B and GPipe wait for the others once; interleaving divides that by the chunks, but waits for whole rounds.
    Source: Narayanan et al. 2021 (arXiv 2104.04473). Shapes: one entry per job.
    """
    parts = np.maximum(chunks, 1.0)
    missing = np.mod(-count, pipeline)
    filling = np.where(pipeline > 1, 1 / parts, 0.0)
    return filling, np.where((pipeline > 1) & (parts > 1), (parts - 1) / parts * missing, 0.0)


def chunks_in_rounds(in_rounds: Flags, chunks: Array) -> Array:
    """Share of a rank's layers beyond its first chunk, where micro-batches go through chunks in rounds. Broadcast."""
    return np.where(in_rounds, 1 - 1 / np.maximum(chunks, 1.0), 0.0)


def round_length(pipeline: Array, count: Array) -> Array:
    """Micro-batches of a round: one for each rank, or more where they make no more rounds. Shapes: broadcast."""
    return np.asarray(count / np.maximum(np.floor(count / pipeline), 1.0))


def bubble_left(schedule: str, pipeline: Array, forward: Array, weight: Array) -> Array:
    """Share of 1F1B's bubble that a schedule leaves which does weight gradients apart; 1 for one that does not.

    `forward` and `weight` are the shares of forward F and of weight gradients W in what a chunk takes, input gradients
    I the rest. Shapes: broadcast.
    """
    return np.asarray(schedule_of(schedule).bubble_left(pipeline, forward, weight))


def bubbles_left(schedules: Names, pipeline: Array, forward: Array, weight: Array) -> Array:
    """The same where plans differ in their schedules, along the first axis of `schedules`. Shapes: broadcast."""
    names = np.unique(schedules)
    if len({schedule_of(str(name)).bubble_left for name in names}) == 1:
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
