"""The bytes of all plans of some layouts at once, on the few stages one of which is the fullest."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np

from planner.cost.memory.peak import StageCosts, kept_together, offloaded_bytes, reserved_bytes
from planner.cost.memory.stage_states import StageStates
from planner.space.block import Block
from planner.space.layouts import Ints
from planner.space.schedule_choices import METHODS, NUM_PLACES
from planner.space.stage_table import STATES, StageTable, of_kind, of_whole
from profiles.models.transformer import Array

FIRST, LAST, FULL, BEFORE_LAST = range(NUM_PLACES)
# Bytes of one stage, by its table and place, of some schedules.
StageLaw = Callable[[Block, StageTable, int, Ints], Array]


def device_bytes(plans: Block) -> Array:
    """Bytes on the device as the driver shows them. Shapes: (layout, micro-batch, schedule, recomputation)."""
    return _fullest(plans, _stage_bytes)


def host_bytes(plans: Block) -> Array:
    """Bytes that a rank has offloaded to its host at its fullest: optimizer states, and activations in flight.

    Of layouts that offload activations. Shapes: (layout, micro-batch, schedule, recomputation).
    """
    return _fullest(plans, _offloaded) + plans.each(plans.tables.shared.offloaded_states)


def _fullest(plans: Block, law: StageLaw) -> Array:
    """What a law says of the fullest stage."""
    stages, choices = plans.tables.shared.stages, plans.choices
    chunks = choices.chunks if len({number for number, _ in stages}) > 1 else np.ones(len(choices.chunks))
    result = np.empty(plans.shape)
    for key in {(int(number), bool(v)) for number, v in zip(chunks, choices.through_v, strict=True)}:
        columns = np.flatnonzero((chunks == key[0]) & (choices.through_v == key[1]))
        result[:, :, columns] = _of_schedules(plans, law, stages[key], columns)
    return result


def _of_schedules(plans: Block, law: StageLaw, stages: StageTable, columns: Ints) -> Array:
    """The same for some schedules, whose stages hold what is in `stages`."""
    shared = plans.tables.shared
    result = law(plans, stages, FIRST, columns)
    if plans.is_any(shared.jobs.pipeline == 1):
        return result
    if not shared.jobs.model.is_alike:
        others = range(1, int(shared.jobs.pipeline[plans.layouts[0]]))
        return reduce(np.maximum, (law(plans, stages, place, columns) for place in others), result)
    result = np.maximum(result, law(plans, stages, LAST, columns))
    if shared.jobs.model.is_moe[0] or (shared.jobs.first_fewer[plans.layouts] > 0).any():
        result = np.maximum(result, law(plans, stages, FULL, columns))
    waits = plans.choices.waits[columns]
    # The last but one of two stages is the first.
    if waits.any() and not plans.is_any(shared.jobs.pipeline == 2):
        waiting = law(plans, stages, BEFORE_LAST, np.asarray(columns)[waits])
        result[:, :, waits] = np.maximum(result[:, :, waits], waiting)
    return result


def _stage_bytes(plans: Block, stages: StageTable, place: int, columns: Ints) -> Array:
    """Bytes of one stage at its fullest, with context and communicators."""
    stage = stages.at(place, plans.layouts)
    held = reserved_bytes(_costs(plans, stage, place, columns), stage["context_bytes"])
    return _of_columns(plans, held, columns)


def _offloaded(plans: Block, stages: StageTable, place: int, columns: Ints) -> Array:
    """Activations of one stage that are on the host at its fullest."""
    kept, largest, _ = _kept(plans, stages.at(place, plans.layouts))
    held = plans.choices.held[place][:, columns, None]
    return _of_columns(plans, offloaded_bytes(kept, largest, held), columns)


def _of_columns(plans: Block, values: Array, columns: Ints) -> Array:
    """The values at the full shape of some schedules."""
    shape = plans.shape
    return np.broadcast_to(values, (*shape[:2], len(columns), shape[3]))


def _costs(plans: Block, stage: dict[str, Array], place: int, columns: Ints) -> StageCosts:
    """What the law of the peak reads of one stage of a block's plans."""
    choices = plans.choices
    kept, largest, backward = _kept(plans, stage)
    tokens = plans.tokens
    hidden, num_logits = tokens * stage["hidden_per_token"], tokens * stage["logits_per_token"]
    held = choices.held[place][:, columns, None]
    uneven = plans.tables.shared.is_uneven[plans.layouts] if place == BEFORE_LAST else np.zeros(1, dtype=bool)
    if uneven.any():
        held = np.where(uneven[:, None, None, None], choices.held_by_last_full[:, columns, None], held)
    return StageCosts(
        states=StageStates(**{name: stage[name] for name in STATES}),
        kept=kept,
        largest=largest,
        backward=backward,
        in_flight=held,
        offloads=plans.each_flag(plans.tables.shared.jobs.activation_offload),
        again=np.where(choices.method == METHODS.index("full"), choices.share, 0.0),
        hidden=hidden,
        gathered=tokens * stage["gathered_per_token"],
        num_logits=num_logits,
        loss_logit=stage["loss_logit"],
        head_logit=stage["head_logit"],
        waiting_logit=stage["waiting_logit"],
        num_waiting=np.where(choices.forwards_first[columns][:, None], held - 1, 0.0),
        is_last=(stage["is_last"] > 0) & (plans.tables.at.model.transformer.first_position > 0),
        head_gradient=stage["head_gradient"],
        embedding_gradient=stage["embedding_gradient"],
        num_microbatches=choices.count[:, None, None],
        chunks=choices.chunks[columns][:, None],
        opened=choices.opened[:, columns, None],
        received=_received(plans, stage, columns, hidden),
        workspace=stage["workspace"],
        buckets=stage["buckets"],
        fixed_slack=stage["held_beside"] + num_logits * stage["logit_slack"],
        working_slack=stage["working_slack"],
        idle=np.zeros(1),
    )


def _kept(plans: Block, stage: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Activations of one micro-batch: all, of the largest layer, what backward adds. Shapes: (g, m, 1, k)."""
    kinds = [
        (stage[of_kind(kind)], kept, backward + stage[of_whole(kind)] if of_whole(kind) in stage else backward)
        for kind, (kept, backward) in plans.kept.items()
    ]
    whole, largest, backward = kept_together(kinds)
    if np.any(stage["output_per_token"] > 0):
        whole = whole + plans.tokens * stage["output_per_token"]
    return whole, largest, backward


def _received(plans: Block, stage: dict[str, Array], columns: Ints, hidden: Array) -> Array:
    """What a pipeline's messages of a whole step take, where they are allotted at once. Shapes: (g, m, s, 1)."""
    shared = plans.tables.shared
    if not plans.is_any(shared.rules.receives_whole_step) or plans.is_any(shared.jobs.pipeline == 1):
        return np.zeros((1, 1, 1, 1))
    chunks = plans.choices.chunks[columns][:, None]
    waits = plans.choices.waits[columns][:, None]
    left = np.where(waits, chunks - stage["is_first"], 0.0)
    messages = 2 * chunks - stage["is_first"] - stage["is_last"] + left
    return np.asarray(hidden * plans.choices.count[:, None, None] * messages)
