"""The bytes of all plans of some layouts at once, on the few stages one of which is the fullest."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from planner.cost.memory.footprint import loss_bytes
from planner.cost.memory.peak import KEPT_LOGIT_BYTES, StageCosts, reserved_bytes
from planner.cost.memory.stage_states import StageContent, StageStates
from planner.space.block import Block
from planner.space.layouts import Ints
from planner.space.schedule_choices import METHODS
from planner.space.tables import StageTable
from profiles.models.transformer import Array

FIRST, LAST, FULL, BEFORE_LAST = range(4)


def device_bytes(own: Block) -> Array:
    """Bytes on the device as the driver shows them. Shapes: (layout, micro-batch, schedule, recomputation)."""
    stages, choices = own.tables.shared.stages, own.choices
    chunks = choices.chunks if len({number for number, _ in stages}) > 1 else np.ones(len(choices.chunks))
    result = np.empty(own.shape)
    for key in {(int(number), bool(v)) for number, v in zip(chunks, choices.through_v, strict=True)}:
        columns = np.flatnonzero((chunks == key[0]) & (choices.through_v == key[1]))
        result[:, :, columns] = _of_schedules(own, stages[key], columns)
    return result


def _of_schedules(own: Block, stages: StageTable, columns: Ints) -> Array:
    """The same for some schedules, whose stages hold what is in `stages`."""
    shared = own.tables.shared
    result = _stage_bytes(own, stages, FIRST, columns)
    if own.is_any(shared.jobs.pipeline == 1):
        return result
    result = np.maximum(result, _stage_bytes(own, stages, LAST, columns))
    if shared.jobs.model.is_moe[0] or (shared.jobs.first_fewer[own.layouts] > 0).any():
        result = np.maximum(result, _stage_bytes(own, stages, FULL, columns))
    waits = own.choices.waits[columns]
    if waits.any():
        waiting = _stage_bytes(own, stages, BEFORE_LAST, np.asarray(columns)[waits])
        result[:, :, waits] = np.maximum(result[:, :, waits], waiting)
    return result


def _stage_bytes(own: Block, stages: StageTable, place: int, columns: Ints) -> Array:
    """Bytes of one stage at its fullest, with context and communicators."""
    held = reserved_bytes(_costs(own, stages, place, columns)) + own.each(own.tables.shared.rules.context_bytes)
    shape = own.shape
    return np.broadcast_to(held, (*shape[:2], len(columns), shape[3]))


def _costs(own: Block, stages: StageTable, place: int, columns: Ints) -> StageCosts:
    """What the law of the peak reads of one stage of a block's plans."""
    shared, choices, content = own.tables.shared, own.choices, stages.contents[place]
    jobs, rules = shared.jobs, shared.rules
    hidden_size = own.tables.at.model.transformer.hidden_size[0]
    kept, largest, backward = _kept(own, content)
    tokens, vocabulary = own.of(own.tables.layers.tokens), shared.layer.vocabulary
    whole = tokens * own.each(hidden_size * rules.element_bytes)
    hidden = whole / own.each(np.where(jobs.sequence_parallel, jobs.tensor, 1.0))
    logits_per_token = own.each(vocabulary * content.is_last / hidden_size)
    ends = content.is_first.astype(float) + content.is_last
    count, chunks = choices.count[:, None, None], choices.chunks[columns][:, None]
    held = choices.held[place][:, columns, None]
    num_logits = tokens * logits_per_token
    return StageCosts(
        states=_each_state(own, stages.states[place]),
        kept=kept,
        largest=largest,
        backward=backward,
        in_flight=held,
        offloads=own.each_flag(jobs.activation_offload),
        again=np.where(choices.method == METHODS.index("full"), choices.share, 0.0),
        hidden=hidden,
        gathered=np.where(own.each_flag(jobs.sequence_parallel), 2 * whole, 0.0),
        num_logits=num_logits,
        loss_logit=own.each(loss_bytes(jobs, rules)),
        head_logit=own.each(rules.head_logit_bytes),
        waiting_logit=own.each(KEPT_LOGIT_BYTES + rules.element_bytes),
        num_waiting=np.where(choices.forwards_first[columns][:, None], held - 1, 0.0),
        is_last=own.each_flag(content.is_last),
        head_gradient=own.each(vocabulary * rules.head_gradient_bytes * content.is_last),
        embedding_gradient=own.each(vocabulary * rules.head_gradient_bytes * content.is_first),
        num_microbatches=count,
        chunks=chunks,
        opened=choices.opened[:, columns, None],
        received=_received(own, content, columns, hidden),
        workspace=own.each(rules.workspace_bytes),
        buckets=own.each(np.where(jobs.data * jobs.context > 1, rules.bucket_bytes, 0.0)),
        fixed_slack=own.each(vocabulary * rules.element_bytes * ends * rules.vocabulary_slack)
        + num_logits * own.each(rules.element_bytes * rules.logit_slack),
        working_slack=own.each(rules.working_slack),
    )


def _each_state(own: Block, states: StageStates) -> StageStates:
    return StageStates(**{field.name: own.each(getattr(states, field.name)) for field in fields(StageStates)})


def _kept(own: Block, content: StageContent) -> tuple[Array, Array, Array]:
    """Activations of one micro-batch: all, of the largest layer, what backward adds. Shapes: (g, m, 1, k)."""
    layers = own.tables.layers
    whole = largest = backward = np.zeros((1, 1, 1, 1))
    for kind, table in layers.kept.items():
        count = own.each(content.dense_layers if kind == "dense" else content.routed_layers)
        kept = own.mixed(own.of(table))
        whole, largest = whole + count * kept, np.maximum(largest, np.where(count > 0, kept, 0.0))
        # A recomputed layer fills up to what one that is not has kept; the last layer goes backward first.
        own_backward = own.of(layers.backward[kind])[..., own.choices.method]
        backward = np.where(count > 0, own_backward, backward)
    return whole, largest, backward


def _received(own: Block, content: StageContent, columns: Ints, hidden: Array) -> Array:
    """What a pipeline's messages of a whole step take, where they are allotted at once. Shapes: (g, m, s, 1)."""
    jobs, rules = own.tables.shared.jobs, own.tables.shared.rules
    if not own.is_any(rules.receives_whole_step & (jobs.pipeline > 1)):
        return np.zeros((1, 1, 1, 1))
    first, last = own.each(content.is_first.astype(float)), own.each(content.is_last.astype(float))
    chunks = own.choices.chunks[columns][:, None]
    waits = own.choices.waits[columns][:, None]
    left = np.where(waits, chunks - first, 0.0)
    return np.asarray(hidden * own.choices.count[:, None, None] * (2 * chunks - first - last + left))
