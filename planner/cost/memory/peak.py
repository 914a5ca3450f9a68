"""The fullest moment of a pipeline stage: one law, for one plan and for a table of ten million alike.

All arrays broadcast over plans, whatever their axes: one entry per job, or layouts by micro-batches by schedules by
recomputations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from planner.cost.memory.stage_states import StageStates, of_chunks
from profiles.models.transformer import Array, Flags

PARTS = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers", "workspace")
# The first four with all activations of the micro-batches in flight.
MOMENTS = ("layer backward", "loss", "head backward", "forward", "embedding backward", "update")
NUM_FULL = 4
# Where activations go to the host, those of the layer at work and of the one on its way stay.
LAYERS_NOT_OFFLOADED = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """Bytes that a stage holds, of one micro-batch where nothing else is said.

    `kept`: activations of all layers; `largest`: of the largest one; `backward`: what the last layer's backward adds.
    `in_flight`: micro-batches whose activations are held at the most; `again`: share of the layers recomputed in full.
    `hidden`: the residual stream; `gathered`: what sequence parallelism gathers around the head.
    `num_logits`: of the last stage, in elements; `loss_logit`, `head_logit`: bytes of each in the loss and in the
    head's backward; `waiting_logit`: of one whose loss waits; `num_waiting`: losses that wait for their backward.
    `head_gradient`, `embedding_gradient`: of the vocabulary, on the stages that have it.
    `chunks` of a rank, of which `opened` are under way. `received`: messages of a whole step, where they are allotted
    at once. `workspace` of the matrix library, `buckets` of communication. `fixed_slack`: holes that the allocator has
    whatever is kept; `working_slack`: those that activations leave, as a share of them; `idle`: of those
    that a loss leaves what the allocator would give back.
    """

    states: StageStates
    kept: Array
    largest: Array
    backward: Array
    in_flight: Array
    offloads: Flags
    again: Array
    hidden: Array
    gathered: Array
    num_logits: Array
    loss_logit: Array
    head_logit: Array
    waiting_logit: Array
    num_waiting: Array
    is_last: Flags
    head_gradient: Array
    embedding_gradient: Array
    num_microbatches: Array
    chunks: Array
    opened: Array
    received: Array
    workspace: Array
    buckets: Array
    fixed_slack: Array
    working_slack: Array
    idle: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Bytes that a moment has beside what others have as well."""

    activations: Array
    logits: Array
    buffers: Array

    @property
    def total(self) -> Array:
        """All of them."""
        return np.asarray(self.activations + self.logits + self.buffers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """A stage at its fullest; `moment` counts in MOMENTS. `reserved_bytes`: the most that its allocator ever holds.

    `needed_bytes`: without what it holds and would give back. `offloaded_bytes`: activations that are on the host.
    """

    allocated_bytes: Array
    reserved_bytes: Array
    needed_bytes: Array
    offloaded_bytes: Array
    moment: NDArray[np.int64]
    parts: dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Law:
    """The terms of a stage's peak.

    `full`: moments with all activations; beside them, alike in all of those, `whole` gradients (less those `absent`)
    and losses that are `waiting`. `flying`: micro-batches whose activations are on the device. Where the first backward
    pass is the last (`is_early`), weights that are `freed` are not there at its `ending`.
    """

    full: Sequence[Moment]
    ending: Moment
    is_early: Flags
    freed: Array
    update: Array
    casts: Array
    flying: Array
    whole: Array
    waiting: Array
    absent: Array


def _law(stage: StageCosts) -> _Law:
    """The moments of a stage.

    Model: the backward of the last layer with all micro-batches in flight, the loss, the backward of the head, the end
    of the last forward, when autocast has copies of recomputed layers as well; the backward of the embedding, when the
    last micro-batch's activations are free; the update of the weights. A stage that holds all of a step before its
    first backward has no gradients yet.
    """
    states, zero = stage.states, np.zeros(1)
    together = of_chunks(states, np.maximum(stage.chunks, 1.0), stage.opened)
    is_early = holds_all(stage.in_flight, stage.num_microbatches, stage.chunks)
    casts = states.head_casts + states.casts * (1 - stage.again)
    final = np.where(stage.is_last, 2 * stage.hidden, 0.0)
    head = final + stage.hidden + stage.gathered
    flying: Array = stage.in_flight
    if np.any(stage.offloads):
        flying = np.where(stage.offloads, not_offloaded(stage.kept, stage.largest, flying), flying)
    waiting = stage.num_logits * stage.waiting_logit * stage.num_waiting
    fresh: Array = states.fresh
    if np.any(np.isfinite(states.arriving)):
        # Where gradients of a layer are larger than what it kept, the first layer's pass is the fullest.
        fresh = np.minimum(fresh, stage.kept - stage.largest + states.arriving)
    absent = np.where(is_early, fresh, 0.0)
    left = together.ending + together.accumulated + stage.embedding_gradient
    full = (
        Moment(activations=stage.backward, logits=zero, buffers=together.backward),
        Moment(
            activations=final,
            logits=stage.num_logits * stage.loss_logit,
            buffers=together.loss + states.head_gathered,
        ),
        Moment(
            activations=head,
            logits=stage.num_logits * stage.head_logit,
            buffers=together.head + states.head_gathered + stage.head_gradient,
        ),
        Moment(activations=zero, logits=zero, buffers=together.forward + states.casts * stage.again),
    )
    return _Law(
        full=full,
        ending=Moment(activations=zero, logits=zero, buffers=left),
        is_early=is_early,
        freed=together.ending - together.last_ending,
        update=states.scratch + states.step,
        casts=casts,
        flying=flying,
        whole=np.where(is_early, -absent, together.accumulated),
        waiting=waiting,
        absent=absent,
    )


def not_offloaded(kept: Array, largest: Array, in_flight: Array) -> Array:
    """How many of the micro-batches in flight a device holds whose stage offloads activations. Shapes: broadcast."""
    return np.asarray(np.minimum(in_flight, LAYERS_NOT_OFFLOADED * largest / np.maximum(kept, 1.0)))


def offloaded_bytes(kept: Array, largest: Array, in_flight: Array) -> Array:
    """Activations that a stage has on the host at its fullest: all that its device does not hold. Shapes: broadcast."""
    few = LAYERS_NOT_OFFLOADED * largest / np.maximum(kept, 1.0)
    return np.asarray(kept * np.maximum(in_flight - few, 0.0))


def reserved_bytes(stage: StageCosts, beyond: Array) -> Array:
    """Bytes that the allocator of a stage holds at the most, and those `beyond` it. Shapes: broadcast.

    Model: every moment has `kept` for each micro-batch in flight, so that two of them differ in small tables alone: the
    one with all activations, and that of the embedding, which lacks those of one micro-batch. Each has holes.
    """
    law, solid = _law(stage), 1 + stage.working_slack
    kept = stage.kept * solid
    # Those that are the same for all that is recomputed come first: the largest arrays are combined last.
    backward, *others = (moment.activations * solid + moment.logits + moment.buffers for moment in law.full)
    full = np.maximum(reduce(np.maximum, others), backward)
    if law.flying is stage.in_flight:
        held = (kept + law.casts) * law.flying
    else:
        held = kept * law.flying + law.casts * stage.in_flight
    at_end = law.ending.total
    if np.any(law.freed > 0):
        at_end = np.where(law.is_early, at_end - law.freed, at_end)
    ending = at_end - kept * np.minimum(law.flying, 1.0)
    most = held + np.maximum((law.whole + law.waiting) + full, ending)
    states = stage.states.parameters + stage.states.gradients + stage.states.optimizer
    fixed = states + stage.workspace + stage.buckets + stage.fixed_slack + beyond + stage.received
    if np.any(law.update > 0):
        return np.asarray(np.maximum(most + (stage.states.scratch + fixed), law.update + fixed))
    return np.asarray(most + fixed)


def peak_of(stage: StageCosts) -> Peak:
    """A stage at its fullest moment, part by part. Shapes: broadcast."""
    law, states = _law(stage), stage.states
    held = stage.kept * law.flying
    working = states.scratch + law.casts * stage.in_flight
    every = [
        Moment(
            activations=held + moment.activations,
            logits=law.waiting + moment.logits,
            buffers=working + law.whole + moment.buffers,
        )
        for moment in law.full
    ]
    remaining = stage.kept * np.maximum(law.flying - 1, 0.0)
    at_end = working + law.ending.buffers - np.where(law.is_early, law.freed, 0.0)
    every.append(Moment(activations=remaining, logits=np.zeros(1), buffers=at_end))
    every.append(Moment(activations=np.zeros(1), logits=np.zeros(1), buffers=law.update))
    totals = np.stack(np.broadcast_arrays(*(moment.total for moment in every)))
    holes = np.stack(np.broadcast_arrays(*(moment.activations * stage.working_slack for moment in every)))
    moment = totals.argmax(axis=0)
    names = ("activations", "logits", "buffers")
    picked = {name: np.choose(moment, [getattr(one, name) for one in every]) for name in names}
    absent = np.where(moment < NUM_FULL, law.absent, 0.0)
    parts = {
        "parameters": states.parameters,
        "gradients": states.gradients - absent,
        "optimizer": states.optimizer,
        "activations": picked["activations"],
        "logits": picked["logits"],
        "buffers": picked["buffers"] + absent + stage.buckets + stage.received,
        "workspace": stage.workspace,
    }
    allocated = reduce(np.add, parts.values())
    always = allocated - totals.max(axis=0) + stage.fixed_slack
    needed = always + (totals + holes).max(axis=0)
    # What an update needs for a while finds no hole of its size where activations were, but where a loss left some, and
    # so do the shards of gradients, which come while what they are of is whole.
    shards = np.where((states.passing > 0) & (states.step > 0), law.absent, 0.0)
    update = np.where(states.accumulated > 0, 0.0, np.maximum(states.step + shards, stage.idle))
    reserved = np.maximum(needed, always + (totals + holes)[:-1].max(axis=0) + update)
    offloaded = np.where(stage.offloads, offloaded_bytes(stage.kept, stage.largest, stage.in_flight), 0.0)
    return Peak(
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        needed_bytes=needed,
        offloaded_bytes=offloaded,
        moment=moment,
        parts=parts,
    )


def kept_together(kinds: Sequence[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    """Activations of a stage's layers by kind (how many, what each keeps, what its backward adds), in model order.

    All that is kept, what the largest keeps, and what backward adds at its worst to all that is kept: the last layer
    goes first, and when another one does, those after it are free. Shapes: broadcast.
    """
    whole = largest = np.zeros(1)
    backward: Array | None = None
    for count, kept, adds in reversed(kinds):
        if not np.any(count > 0):
            continue
        if backward is None and np.all(count > 0):
            # Nothing comes after it, and there is one everywhere.
            whole, largest, backward = count * kept, kept, adds
            continue
        worst = adds if backward is None else np.maximum(backward, np.where(count > 0, adds - whole, 0.0))
        backward = worst if backward is None else np.where(whole > 0, worst, np.where(count > 0, adds, 0.0))
        whole, largest = whole + count * kept, np.maximum(largest, np.where(count > 0, kept, 0.0))
    return whole, largest, np.zeros(1) if backward is None else backward


def holds_all(held: Array, count: Array, chunks: Array) -> Flags:
    """Whether a stage holds most when all of a step has gone forward, at most one of several chunks aside.

    No gradient is made then. Shapes: the arguments broadcast.
    """
    return np.asarray(held + np.where(chunks > 1, 1 / np.maximum(chunks, 1.0), 0.0) >= count)
