"""Peak memory per device of training jobs from their configuration alone, in columns, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.axes.pipeline import held_microbatches, open_chunks
from planner.cost.job import Jobs, Names
from planner.cost.memory.saved_tensors import LayerMemory, layer_memory
from planner.cost.memory.stage_states import (
    LayerParameters,
    StageContent,
    StageStates,
    layer_parameters,
    of_chunks,
    stage_content,
    stage_states,
)
from planner.cost.software_memory import MemoryRules, memory_rules
from planner.schedules.registry import has
from profiles.models.transformer import Array, Flags

PARTS = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers", "workspace")
MOMENTS = ("layer backward", "loss", "head backward", "embedding backward", "update", "forward")
# At these, by their number, no layer goes backward any more.
LATE_MOMENTS = (3, 4)
# Where activations go to the host, those of the layer at work and of the one on its way stay.
LAYERS_NOT_OFFLOADED = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of the fullest rank of every job. Shapes: one entry per job, in `stage_allocated_bytes` (job, stage).

    `parts` sum to `allocated_bytes`, what the allocator's peak counter shows; `reserved_bytes` is the most that the
    caching allocator of any rank holds; `device_bytes` adds context and communicators: what the driver shows, and what
    must fit. `stage` is the pipeline stage with the peak and `moment` when it comes; stages that a job does not have
    are nan.
    """

    parts: dict[str, Array]
    allocated_bytes: Array
    reserved_bytes: Array
    device_bytes: Array
    stage: Array
    moment: Names
    stage_allocated_bytes: Array


def footprint(jobs: Jobs, contents: Callable[[StageMemory, int], StageContent] | None = None) -> Footprint:
    """Peak memory of `jobs` in bytes.

    Model: per stage, states plus the fullest of six moments: the backward of the last layer with all micro-batches in
    flight, the loss, the backward of the head, that of the embedding when the last micro-batch's activations are free,
    the update of the weights, and the end of the last forward, when autocast has copies of recomputed layers as well.
    Ignores: unbalanced routing, fragmentation beyond the stack's slack, memory of the data loader.
    """
    shared = stage_memory(jobs)
    num_stages = int(jobs.pipeline.max(initial=1))
    by_stage = np.full((len(jobs), num_stages), np.nan)
    best = {name: np.full(len(jobs), -1.0) for name in PARTS}
    total, reserved = np.full(len(jobs), -1.0), np.full(len(jobs), -1.0)
    moment, where = np.zeros(len(jobs), dtype=np.int64), np.zeros(len(jobs))
    for index in range(num_stages):
        stage = contents(shared, index) if contents else stage_content(jobs, shared.rules, index)
        own = shared.at(stage)
        held = own.allocated_bytes
        by_stage[:, index] = np.where(stage.exists, held, np.nan)
        reserved = np.where(stage.exists, np.maximum(reserved, own.reserved_bytes), reserved)
        is_fuller = stage.exists & (held > total)
        total, where = np.where(is_fuller, held, total), np.where(is_fuller, float(index), where)
        moment = np.where(is_fuller, own.moment, moment)
        best = {name: np.where(is_fuller, own.parts[name], best[name]) for name in PARTS}
    return Footprint(
        parts=best,
        allocated_bytes=total,
        reserved_bytes=reserved,
        device_bytes=reserved + shared.rules.context_bytes,
        stage=where,
        moment=np.array(MOMENTS)[moment],
        stage_allocated_bytes=by_stage,
    )


# Of a loss that waits for its backward, as GPipe's all do: the logarithms of the softmax in 32 bits. The pipeline keeps
# the logits themselves.
KEPT_LOGIT_BYTES = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBytes:
    """Bytes of one stage of every job at its fullest, `moment` being a number in MOMENTS. Shapes: one entry per job."""

    parts: dict[str, Array]
    moment: NDArray[np.int64]
    allocated_bytes: Array
    reserved_bytes: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """The laws of memory asked about jobs once, for stages that hold whatever is said of them."""

    jobs: Jobs
    rules: MemoryRules
    parameters: LayerParameters
    layers: tuple[LayerMemory, LayerMemory]

    def at(self, stage: StageContent) -> StageBytes:
        """Peak memory in bytes of a stage that holds what `stage` says."""
        parts, moment = _stage_parts(self.jobs, self.rules, self.parameters, self.layers, stage)
        held = np.asarray(sum(parts.values(), np.zeros(len(self.jobs))))
        slack = _slack_bytes(self.jobs, self.rules, self.parameters, stage, parts["activations"])
        return StageBytes(parts=parts, moment=moment, allocated_bytes=held, reserved_bytes=held + slack)


def stage_memory(jobs: Jobs) -> StageMemory:
    """What all stages of `jobs` share."""
    rules = memory_rules(jobs)
    layers = (layer_memory(jobs, rules, routed=False), layer_memory(jobs, rules, routed=True))
    return StageMemory(jobs=jobs, rules=rules, parameters=layer_parameters(jobs, rules), layers=layers)


def in_flight(jobs: Jobs, stage: int | Array) -> Array:
    """Micro-batches whose activations a stage holds at its fullest, in whole stages. Shapes: one entry per job."""
    held = np.ones(len(jobs))
    place = np.broadcast_to(np.asarray(stage, dtype=np.float64), held.shape)
    for schedule in np.unique(jobs.schedule):
        own = held_microbatches(str(schedule), jobs.pipeline, jobs.chunks, jobs.num_microbatches, place)
        held = np.where(jobs.schedule == schedule, own, held)
    return held


def _slack_bytes(
    jobs: Jobs, rules: MemoryRules, parameters: LayerParameters, stage: StageContent, activations: Array
) -> Array:
    """Bytes that the allocator holds and does not hand out.

    Model: the largest tensors leave the largest holes: gradients of embedding and head, logits; activations leave some.
    Source: differences between reserved and allocated memory of published runs, fitted by stack.
    """
    vocabulary = parameters.vocabulary * rules.element_bytes * (stage.is_first.astype(float) + stage.is_last)
    logits = jobs.tokens * parameters.vocabulary / jobs.model.hidden_size * rules.element_bytes * stage.is_last
    slack = vocabulary * rules.vocabulary_slack + logits * rules.logit_slack + activations * rules.working_slack
    return np.asarray(slack)


def _stage_parts(
    jobs: Jobs,
    rules: MemoryRules,
    parameters: LayerParameters,
    layers: tuple[LayerMemory, LayerMemory],
    stage: StageContent,
) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Bytes by part of one stage at its fullest moment, and the number of that moment."""
    states = stage_states(jobs, rules, parameters, stage)
    activations, logits, buffers = _moments(jobs, rules, parameters, layers, stage, states)
    when = np.argmax(activations + logits + buffers, axis=0)
    received = num_received(jobs, rules, stage) * jobs.num_microbatches * hidden_bytes(jobs, rules)[0]

    def pick(table: Array) -> Array:
        return np.asarray(np.take_along_axis(table, when[None], axis=0)[0])

    is_early = holds_all(in_flight(jobs, stage.index), jobs.num_microbatches, jobs.chunks)
    absent = np.where(is_early & ~np.isin(when, LATE_MOMENTS), states.fresh, 0.0)
    parts = {
        "parameters": states.parameters,
        "gradients": states.gradients - absent,
        "optimizer": states.optimizer,
        "activations": pick(activations),
        "logits": pick(logits),
        "buffers": pick(buffers) + absent + np.where(jobs.data * jobs.context > 1, rules.bucket_bytes, 0.0) + received,
        "workspace": rules.workspace_bytes,
    }
    return parts, when


def _moments(
    jobs: Jobs,
    rules: MemoryRules,
    parameters: LayerParameters,
    layers: tuple[LayerMemory, LayerMemory],
    stage: StageContent,
    states: StageStates,
) -> tuple[Array, Array, Array]:
    """Bytes of activations, logits and buffers at each of MOMENTS. Shapes: (moment, job)."""
    dense, routed = layers
    one = stage.dense_layers * dense.kept + stage.routed_layers * routed.kept
    held = one * in_flight(jobs, stage.index)
    largest = np.maximum(
        np.where(stage.dense_layers > 0, dense.kept, 0.0), np.where(stage.routed_layers > 0, routed.kept, 0.0)
    )
    held = np.where(jobs.activation_offload, np.minimum(held, LAYERS_NOT_OFFLOADED * largest), held)
    # The last layer goes backward first.
    backward = np.where(stage.routed_layers > 0, routed.backward, dense.backward)
    hidden, gathered = hidden_bytes(jobs, rules)
    num_logits = np.where(stage.is_last, jobs.tokens * parameters.vocabulary / jobs.model.hidden_size, 0.0)
    head = np.where(stage.is_last, parameters.vocabulary, 0.0) * rules.head_gradient_bytes
    embedding = np.where(stage.is_first, parameters.vocabulary, 0.0) * rules.head_gradient_bytes
    zero = np.zeros(len(jobs))
    final = np.where(stage.is_last, 2 * hidden, 0.0)
    remaining = np.maximum(held - one, 0.0)
    activations = [held + backward, held + final, held + final + hidden + gathered, remaining, zero, held]
    waiting = (
        num_logits
        * (KEPT_LOGIT_BYTES + rules.element_bytes)
        * np.where(has(jobs.schedule, lambda each: each.forwards_first), in_flight(jobs, stage.index) - 1, 0.0)
    )
    logits = [waiting, waiting + num_logits * loss_bytes(jobs, rules), waiting + num_logits * rules.head_logit_bytes]
    casts = states.head_casts + np.where(jobs.recompute == "full", 0.0, states.casts)
    fixed = states.scratch + casts * in_flight(jobs, stage.index)
    opened = open_chunks(jobs.schedule, jobs.pipeline, jobs.chunks, jobs.num_microbatches)
    together = of_chunks(lambda values: values, states, np.maximum(jobs.chunks, 1.0), opened)
    is_early = holds_all(in_flight(jobs, stage.index), jobs.num_microbatches, jobs.chunks)
    working = fixed + np.where(is_early, -states.fresh, together.accumulated)
    ending = fixed + together.ending + together.accumulated + embedding
    at_loss, at_head = (whole + states.head_gathered for whole in (together.loss, together.head))
    buffers = [working + together.backward, working + at_loss, working + at_head + head, ending]
    cached = working + together.forward + np.where(jobs.recompute == "full", states.casts, 0.0)
    buffers += [states.scratch + states.step, cached]
    return np.stack(activations), np.stack([*logits, zero, zero, waiting]), np.stack(buffers)


def holds_all(held: Array, count: Array, chunks: Array) -> Flags:
    """Whether a stage holds most when all of a step has gone forward, at most one of several chunks aside.

    No gradient is made then. Shapes: the arguments broadcast.
    """
    return np.asarray(held + np.where(chunks > 1, 1 / np.maximum(chunks, 1.0), 0.0) >= count)


def loss_bytes(jobs: Jobs, rules: MemoryRules) -> Array:
    """Bytes per logit of a rank in the loss."""
    return rules.loss_logit_bytes + np.where(jobs.tensor > 1, rules.split_logit_bytes, 0.0)


def num_received(jobs: Jobs, rules: MemoryRules, stage: StageContent) -> Array:
    """Messages that a stage has memory for, per micro-batch of a step: from both neighbours of each of its chunks.

    Where weight gradients wait, torch leaves the gradient of what came from the stage before with it.
    """
    chunks = np.maximum(jobs.chunks, 1.0)
    left = np.where(has(jobs.schedule, lambda each: each.waits), chunks - stage.is_first, 0.0)
    own = 2 * chunks - stage.is_first - stage.is_last + left
    return np.where(rules.receives_whole_step & (jobs.pipeline > 1), own, 0.0)


def hidden_bytes(jobs: Jobs, rules: MemoryRules) -> tuple[Array, Array]:
    """Bytes of the residual stream on one rank, and of what sequence parallelism gathers around the head."""
    whole = jobs.tokens * jobs.model.hidden_size * rules.element_bytes
    return (
        whole / np.where(jobs.sequence_parallel, jobs.tensor, 1.0),
        np.where(jobs.sequence_parallel, 2 * whole, 0.0),
    )
