"""Seconds of a training step: one law, for one plan and for a table of ten million alike.

All arrays broadcast over plans, whatever their axes: one entry per job, or layouts by micro-batches by schedules by
recomputations. What a layer, a message or an update takes alone is given; here it is overlapped and pipelined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.axes.pipeline import bubbles_left
from planner.cost.factors import Factors
from planner.cost.job import Names
from planner.cost.layers import exposed, slowing_share
from profiles.models.transformer import Array, Flags

# The kind of what a pipeline's runtime adds to every chunk, and its number.
ACTION = "action"
# Of the work on embedding and head a third each is forward, and weight gradients.
END_SHARE = 1 / 3
NUM_PLACES = 3
TINY_SECONDS = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeconds:
    """One layer, one micro-batch, one rank: both directions, forward alone, weight gradients."""

    total: Array
    forward: Array
    weight: Array


def end_of_model(total: Array) -> LayerSeconds:
    """Embedding or head as a layer of its own kind, of which both directions are known together alone."""
    return LayerSeconds(total=total, forward=total * END_SHARE, weight=total * END_SHARE)


def pipeline_actions(seconds: Array) -> LayerSeconds:
    """What the pipeline's runtime adds to the passes of a chunk, as a layer of its own kind."""
    return LayerSeconds(total=2 * seconds, forward=seconds, weight=np.zeros(1))


def action_counts(pipeline: Array, chunks: Array, num_places: int = NUM_PLACES) -> tuple[Array, ...]:
    """How many chunks each of some stages has whose passes are a pipeline's actions."""
    return (np.where(pipeline > 1, chunks, 0.0),) * num_places


def end_counts(pipeline: Array, num_places: int = NUM_PLACES) -> dict[str, tuple[Array, ...]]:
    """How many embeddings and heads some stages have, of which the first and the last count, or each without any."""
    one, alone = np.ones_like(pipeline), np.where(pipeline == 1, 1.0, 0.0)
    if num_places == 1:
        return {"embedding": (one,), "head": (one,)}
    between = (alone,) * (num_places - 2)
    return {"embedding": (one, *between, alone), "head": (alone, *between, one)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """What a step is made of.

    `layers`: seconds of a layer by kind, embedding and head among them; `counts`: layers of some stages by kind, the
    first and the last among them, usually with one of those in the midst; `model_counts`: layers of the
    whole model by kind.
    `filling`, `rounds`: idle seconds as multiples, see `planner.cost.axes.pipeline.idle_terms`.
    `message`: seconds of one message between stages; `num_messages`: sent one after the other per step, and
    `num_beside`: beside the passes of others, which they slow.
    `gradients`, `parameters`: seconds of exchanging them once, alone; `num_exchanges` of gradients and
    `num_gathers` of parameters per step. Of `gradients`, `tail` waits for the end of the passes; `late` is what they
    are known to take beside that, or less.
    `other_chunks`: share of a rank's layers beyond its first chunk where those go in rounds, of `round_length`
    micro-batches; 0 elsewhere.
    `once`: seconds of codec, optimizer, offloading and the host outside the layers, per step.
    `straggling`: share of the step that ranks wait for the slowest of many nodes.
    """

    layers: Mapping[str, LayerSeconds]
    counts: Mapping[str, Sequence[Array]]
    model_counts: Mapping[str, Array]
    pipeline: Array
    num_microbatches: Array
    schedule: Names
    filling: Array
    rounds: Array
    message: Array
    num_messages: Array
    num_beside: Array
    gradients: Array
    tail: Array
    late: Array
    parameters: Array
    overlaps_gradients: Flags
    overlaps_parameters: Flags
    num_exchanges: Array
    num_gathers: Array
    other_chunks: Array
    round_length: Array
    once: Array
    straggling: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Seconds of a step by what they are spent on; all but `slowest` per step.

    `slowest`: one micro-batch on the slowest stage, which is `place` of those that were counted.
    """

    slowest: Array
    place: NDArray[np.int64]
    passes: Array
    bubble: Array
    messages: Array
    exchange: Array
    once: Array
    straggling: Array

    @property
    def pipelined(self) -> Array:
        """The passes of all micro-batches with bubbles and messages, without stragglers."""
        return np.asarray((self.passes + self.messages) + self.bubble)

    @property
    def total(self) -> Array:
        """The whole step."""
        once = self.passes + self.exchange + self.once
        return np.asarray((once + self.messages + self.bubble) * (1 + self.straggling))


def step_of(costs: StepCosts, factors: Factors) -> Step:
    """Put a step together.

    Model: every stage passes its micro-batches one after the other at the pace of the slowest; the pipeline fills and
    drains once. Gradients go out behind the last backward pass, gathered parameters behind the first forward pass of
    the rank that is last done and first at work: others have a bubble beside. Of several chunks in rounds each has such
    a pass, a round apart.
    """
    is_flat = bool(np.all(costs.pipeline == 1))
    slowest = ahead = place_of = np.zeros(1)
    for place in range(1 if is_flat else len(next(iter(costs.counts.values())))):
        seconds = forward = np.zeros(1)
        for kind, layer in costs.layers.items():
            count = costs.counts[kind][place]
            seconds, forward = seconds + count * layer.total, forward + count * layer.forward
        is_slower = seconds > slowest
        ahead, place_of = np.where(is_slower, forward, ahead), np.where(is_slower, place, place_of)
        slowest = np.maximum(seconds, slowest)
    zero = np.zeros(1)
    return Step(
        slowest=slowest,
        place=place_of.astype(np.int64),
        passes=slowest * costs.num_microbatches,
        bubble=zero if is_flat else _bubble(costs, slowest),
        messages=zero if is_flat else costs.message * (costs.num_messages + costs.num_beside * slowing_share(factors)),
        exchange=_exchange(costs, ahead, slowest - ahead, factors),
        once=costs.once,
        straggling=costs.straggling,
    )


def _bubble(costs: StepCosts, slowest: Array) -> Array:
    """Seconds per step in which the slowest stage waits for the pipeline to fill and to drain."""
    everything = forward = weight = np.zeros(1)
    for kind, layer in costs.layers.items():
        count = costs.model_counts[kind]
        everything = everything + count * layer.total
        forward, weight = forward + count * layer.forward, weight + count * layer.weight
    left = bubbles_left(costs.schedule, costs.pipeline, forward / everything, weight / everything)
    return np.asarray(np.maximum(everything - slowest, 0.0) * costs.filling * left + slowest * costs.rounds)


def _exchange(costs: StepCosts, forward: Array, backward: Array, factors: Factors) -> Array:
    """Gradients and parameters exchanged once a step, as far as passes do not hide them.

    Model: what a chunk sends waits for that of the chunks before, so that either the last chunk's share beside its own
    pass shows, or all of it beside all passes from the first such chunk on.
    """
    early, has_tail = costs.gradients, bool(np.any(costs.tail))
    if has_tail:
        backward = backward * (1 - costs.tail / np.maximum(costs.gradients, TINY_SECONDS))
        early = early - costs.tail
    both = (early, backward, costs.overlaps_gradients), (costs.parameters, forward, costs.overlaps_parameters)
    gradients, parameters = first = [exposed_exchange(*one, factors) for one in both]
    if has_tail:
        gradients = np.maximum(gradients + costs.tail + costs.late, 0.0)
    result = np.asarray(gradients * costs.num_exchanges + parameters * costs.num_gathers)
    if not np.any(costs.other_chunks):
        return result
    later = [exposed_exchange(sent, beside * costs.round_length, how, factors) for sent, beside, how in both]
    saved = sum(first) - sum(later)
    return np.asarray(result - saved * costs.other_chunks) if np.any(saved) else result


def exposed_exchange(seconds: Array, passing: Array, overlaps: Flags, factors: Factors) -> Array:
    """What messages add to the passes beside which they are sent, where the software overlaps them."""
    if not np.any(overlaps) or not np.any(seconds):
        return seconds
    return np.where(overlaps, exposed(seconds, passing, factors), seconds)
