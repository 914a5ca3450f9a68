"""The bytes of all plans of some layouts at once, on the few stages one of which is the fullest.

The formulae are those of planner/cost/memory/peak, which prices single jobs stage by stage; a test holds both together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.memory.peak import KEPT_LOGIT_BYTES, LAYERS_NOT_OFFLOADED, holds_all, loss_bytes
from planner.cost.memory.stage_states import StageContent, StageStates, Together, of_chunks
from planner.space.block import Block
from planner.space.layouts import Ints
from planner.space.schedule_choices import METHODS
from planner.space.tables import StageTable
from profiles.models.transformer import Array, Flags

FIRST, LAST, FULL, BEFORE_LAST = range(4)


def device_bytes(own: Block) -> Array:
    """Bytes on the device as the driver shows them. Shapes: (layout, micro-batch, schedule, recomputation)."""
    stages, choices = own.tables.shared.stages, own.choices
    chunks = choices.chunks if len({number for number, _ in stages}) > 1 else np.ones(len(choices.chunks))
    result = np.empty((len(own.layouts), len(choices.micro_batch), len(choices.schedules), len(choices.share)))
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
        result[:, :, waits] = np.maximum(
            result[:, :, waits], _stage_bytes(own, stages, BEFORE_LAST, np.asarray(columns)[waits])
        )
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """Activations of a micro-batch on a stage: all, of its largest layer, what its backward adds. Shapes: (g, m, k)."""

    whole: Array
    largest: Array
    backward: Array


def _kept(own: Block, content: StageContent) -> _Kept:
    layers = own.tables.layers
    whole = largest = backward = np.zeros((1, 1, 1))
    for kind, table in layers.kept.items():
        count = own.each(content.dense_layers if kind == "dense" else content.routed_layers)
        kept = own.mixed(own.of(table))
        whole, largest = whole + count * kept, np.maximum(largest, np.where(count > 0, kept, 0.0))
        # A recomputed layer fills up to what one that is not has kept; the last layer goes backward first.
        own_backward = own.of(layers.backward[kind])[:, :, own.choices.method]
        backward = np.where(count > 0, own_backward, backward)
    return _Kept(whole=whole, largest=largest, backward=backward)


def _stage_bytes(own: Block, stages: StageTable, place: int, columns: Ints) -> Array:
    """Bytes of one stage at the fullest of six moments, with what the allocator holds beyond."""
    shared = own.tables.shared
    states, content, rules = stages.states[place], stages.contents[place], shared.rules
    kept = _kept(own, content)
    in_flight = own.choices.held[place][:, columns, None]
    held = kept.whole[:, :, None, :] * in_flight
    if own.is_any(shared.jobs.activation_offload):
        held = np.minimum(held, LAYERS_NOT_OFFLOADED * kept.largest[:, :, None, :])
    scratch = own.each(states.scratch)
    again = np.where(own.choices.method == METHODS.index("full"), own.choices.share, 0.0)
    casts = own.each(states.head_casts) + own.each(states.casts) * (1 - again)
    casts = scratch[..., None] + casts[:, :, None, :] * in_flight
    forwards_first, opened = own.choices.forwards_first[columns], own.choices.opened[:, columns, None]
    count, chunks = own.choices.count[:, None, None], own.choices.chunks[columns][:, None]
    together = of_chunks(lambda values: own.each(values)[..., None], states, np.maximum(chunks, 1.0), opened)
    is_early = holds_all(in_flight, count, chunks)
    cached = (own.each(states.casts) * again)[:, :, None, :] + together.forward
    activations_on_top, on_top = _on_top(own, states, content, kept.backward, together)
    whole = np.where(is_early, -own.each(states.fresh)[..., None], together.accumulated)
    beside = held + casts + whole + _waiting_logits(own, content, forwards_first, in_flight)
    activations_on_top = np.where(cached > on_top, 0.0, activations_on_top)
    full = beside + np.maximum(on_top, cached)
    # The embedding goes backward when the last micro-batch's activations are free.
    remaining = np.maximum(held - kept.whole[:, :, None, :], 0.0)
    vocabulary = own.each(shared.layer.vocabulary * rules.head_gradient_bytes * content.is_first)
    ending = remaining + vocabulary[..., None] + casts + together.ending + together.accumulated
    update = (scratch + own.each(states.step))[..., None]
    most = np.maximum(full, ending)
    activations = np.where(full >= ending, held + activations_on_top, remaining)
    activations = np.where(update > most, 0.0, activations) * own.each(rules.working_slack)[..., None]
    fixed = own.each(stages.state_bytes[place] + rules.context_bytes) + _slack(own, content)
    return np.asarray(np.maximum(most, update) + activations + fixed[:, :, None, :] + _received(own, content, columns))


def _received(own: Block, content: StageContent, columns: Ints) -> Array:
    """What a pipeline's messages of a whole step take, where they are allotted at once. Shapes: (g, m, s, 1)."""
    shared = own.tables.shared
    jobs, rules = shared.jobs, shared.rules
    if not own.is_any(rules.receives_whole_step & (jobs.pipeline > 1)):
        return np.zeros((1, 1, 1, 1))
    message = own.of(own.tables.layers.tokens)[:, :, None] * own.tables.at.model.transformer.hidden_size[0]
    message = message * own.each(rules.element_bytes / np.where(jobs.sequence_parallel, jobs.tensor, 1.0))
    ends = own.each(content.is_first.astype(float) + content.is_last)[:, :, None, :]
    step = (message * own.choices.count[:, None])[:, :, None, :]
    chunks = own.choices.chunks[columns][:, None]
    waits = own.choices.waits[columns][:, None]
    left = np.where(waits, chunks - own.each(content.is_first.astype(float))[:, :, None, :], 0.0)
    return np.asarray(step * (2 * chunks - ends + left))


def _waiting_logits(own: Block, content: StageContent, forwards_first: Flags, in_flight: Array) -> Array:
    """What losses keep that wait for their backward: GPipe's, all but the one at work. Shapes: (g, m, s, 1)."""
    per_token = own.each(own.tables.shared.layer.vocabulary * content.is_last) * (
        KEPT_LOGIT_BYTES + own.each(own.tables.shared.rules.element_bytes)
    )
    one = own.of(own.tables.layers.tokens)[:, :, None] * per_token / own.tables.at.model.transformer.hidden_size[0]
    return np.asarray(one[:, :, None, :] * np.where(forwards_first[:, None], in_flight - 1, 0.0))


def _on_top(
    own: Block, states: StageStates, content: StageContent, backward: Array, together: Together
) -> tuple[Array, Array]:
    """What comes on top of all activations in flight: of it activations, and everything. Shapes: (g, m, s, k).

    Model: the fullest of three moments, the backward of the last layer, the loss, and the backward of the head.
    """
    shared = own.tables.shared
    jobs, rules = shared.jobs, shared.rules
    hidden_size = own.tables.at.model.transformer.hidden_size[0]
    is_last, split = own.each(content.is_last), own.each(jobs.sequence_parallel)
    tokens, vocabulary = own.of(own.tables.layers.tokens)[:, :, None], own.each(shared.layer.vocabulary)
    whole = tokens * hidden_size * own.each(rules.element_bytes)
    hidden = np.where(split, whole / own.each(jobs.tensor), whole)
    final = 2 * hidden * is_last
    at_head = final + hidden + np.where(split, 2 * whole, 0.0)
    num_logits = tokens * vocabulary / hidden_size * is_last
    with_head = own.each(states.head_gathered)
    gradient = vocabulary * own.each(rules.head_gradient_bytes) * is_last
    activations = backward[:, :, None, :]
    most = activations + together.backward
    for own_activations, rest, weights in (
        (final, final + num_logits * own.each(loss_bytes(jobs, rules)) + with_head, together.loss),
        (at_head, at_head + num_logits * own.each(rules.head_logit_bytes) + with_head + gradient, together.head),
    ):
        everything = rest[:, :, None, :] + weights
        activations = np.where(everything > most, own_activations[:, :, None, :], activations)
        most = np.maximum(everything, most)
    return activations, most


def _slack(own: Block, content: StageContent) -> Array:
    """Holes that gradients of the vocabulary and logits leave in the allocator. Shapes: (g, m, 1)."""
    shared = own.tables.shared
    rules, vocabulary = shared.rules, shared.layer.vocabulary
    ends = content.is_first.astype(float) + content.is_last
    held = own.each(vocabulary * rules.element_bytes * ends * rules.vocabulary_slack)
    per_token = vocabulary / own.tables.at.model.transformer.hidden_size[0] * rules.element_bytes * rules.logit_slack
    return np.asarray(held + own.of(own.tables.layers.tokens)[:, :, None] * own.each(per_token * content.is_last))
