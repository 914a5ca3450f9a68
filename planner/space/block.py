"""The seconds of all plans of some layouts at once: what the law of a step reads, gathered from the tables.

Shapes: arrays broadcast over (layout, micro-batch, schedule, recomputation): g, m, s, k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.cost.axes.pipeline import chunks_in_rounds, round_length
from planner.cost.factors import Factors
from planner.cost.layers import ROOT, SHARDED, Often, often_sharded, sharded_message, waits
from planner.cost.once import crossing_seconds, num_exchanges, offloaded_activations
from planner.cost.step import (
    ACTION,
    LayerSeconds,
    Step,
    StepCosts,
    action_counts,
    end_counts,
    end_of_model,
    pipeline_actions,
    step_of,
)
from planner.space.layouts import Ints
from planner.space.question import Setting
from planner.space.schedule_choices import METHODS, Variants
from planner.space.tables import LayerTable, LayoutTable, MessageTable
from profiles.machines.devices import MICROSECOND
from profiles.models.operators import PHASES
from profiles.models.transformer import Array, Flags

# Which methods recompute layers in full.
IS_FULL = np.array([method == "full" for method in METHODS])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What all layouts of a setting share."""

    at: Setting
    layers: LayerTable
    messages: MessageTable
    shared: LayoutTable
    factors: Factors


@dataclass(frozen=True, kw_only=True)
class Block:
    """Layouts that share pipeline and data degree, and are alike in ZeRO 3 and offloaded activations or not.

    `rows` and `columns` are the places of their layers in the tables. What every stage asks for is gathered once.
    """

    tables: Tables
    layouts: Ints
    choices: Variants
    rows: Ints
    columns: Ints

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """How many layouts, micro-batches, schedules and recomputations there are."""
        choices = self.choices
        return len(self.layouts), len(choices.micro_batch), len(choices.schedules), len(choices.share)

    @cached_property
    def kept(self) -> dict[str, tuple[Array, Array]]:
        """What a layer of each kind keeps of one micro-batch, and what its backward adds. Shapes: (g, m, 1, k)."""
        layers, method = self.tables.layers, self.choices.method
        return {
            # A recomputed layer fills up to what one that is not has kept.
            kind: (self.mixed(self.of(table)), self.of(layers.backward[kind])[..., method])
            for kind, table in layers.kept.items()
        }

    @cached_property
    def tokens(self) -> Array:
        """Tokens of one micro-batch on a rank. Shapes: (g, m, 1, 1)."""
        return self.of(self.tables.layers.tokens)

    def of(self, table: Array) -> Array:
        """This block's part of a table of layers by micro-batch and method. Shapes: (g, m, 1, method)."""
        part = table[self.rows[:, None], self.columns]
        return np.asarray(part[:, :, None, :] if part.ndim > 2 else part[:, :, None, None])

    def each(self, column: Array) -> Array:
        """This block's part of a column of layouts. Shapes: (g, 1, 1, 1)."""
        return np.asarray(column[self.layouts][:, None, None, None])

    def each_flag(self, column: Flags) -> Flags:
        """The same of flags."""
        return np.asarray(column[self.layouts][:, None, None, None])

    def mixed(self, table: Array) -> Array:
        """Values by method as values by recomputation: so many layers of a stage are recomputed, the rest is not."""
        rest = table[..., :1]
        return np.asarray(rest + (table[..., self.choices.method] - rest) * self.choices.share)

    def is_any(self, flags: Flags) -> bool:
        """Whether the layouts, which are alike in this, have it."""
        return bool(flags[self.layouts[0]])


def block(tables: Tables, layouts: Ints, choices: Variants) -> Block:
    """Layouts of these numbers with all combinations of `choices`."""
    return Block(
        tables=tables,
        layouts=layouts,
        choices=choices,
        rows=tables.layers.combination[layouts],
        columns=tables.layers.columns(choices.micro_batch),
    )


def step(plans: Block) -> Step:
    """The steps of all plans of a block. Shapes: broadcast over (g, m, s, k)."""
    return step_of(_costs(plans), plans.tables.factors)


def step_seconds(plans: Block) -> Array:
    """Seconds of a step. Shapes: (layout, micro-batch, schedule, recomputation)."""
    return np.broadcast_to(step(plans).total, plans.shape)


def straggling(tables: Tables) -> float:
    """How many times longer a step takes because ranks wait for the slowest of many nodes."""
    nodes = max(tables.at.num_devices / tables.at.devices_per_node, 1.0)
    return float(1 + tables.factors.straggling * np.log2(nodes))


def _costs(plans: Block) -> StepCosts:
    """What the law of a step reads of a block's plans."""
    tables, choices, shared = plans.tables, plans.choices, plans.tables.shared
    layers, jobs = tables.layers, tables.shared.jobs
    count = choices.count[:, None, None]
    model = tables.at.model.transformer
    one = np.ones(1)
    message = tables.messages.seconds[tables.messages.combination[plans.layouts][:, None], plans.columns]
    num_places = len(next(iter(shared.counts.values())))
    kinds = {kind: _layer(plans, kind) for kind in layers.kept} | _ends(plans)
    counts: dict[str, Sequence[Array]] = {
        **{kind: [plans.each(column) for column in columns] for kind, columns in shared.counts.items()},
        **end_counts(plans.each(jobs.pipeline), num_places),
    }
    model_counts = {kind: model.num_of(kind) for kind in model.kinds} | {"embedding": one, "head": one}
    if shared.time.pipeline_action_us.any():
        kinds[ACTION] = pipeline_actions(plans.each(shared.time.pipeline_action_us) * MICROSECOND)
        pipeline, chunks = plans.each(jobs.pipeline), choices.chunks[:, None]
        counts[ACTION] = action_counts(pipeline, chunks, num_places)
        model_counts[ACTION] = np.where(pipeline > 1, pipeline * chunks, 0.0)

    def often(every: Array) -> Array:
        return num_exchanges(plans.each(jobs.zero_stage), plans.each_flag(every > 0), count)

    return StepCosts(
        layers=kinds,
        counts=counts,
        model_counts=model_counts,
        pipeline=plans.each(jobs.pipeline),
        num_microbatches=count,
        schedule=np.array(choices.schedules)[:, None],
        filling=choices.filling[:, :, None],
        rounds=choices.rounds[:, :, None],
        message=message[:, :, None, None],
        num_messages=choices.messages[:, :, None],
        num_beside=choices.beside[:, :, None],
        gradients=plans.each(shared.gradients),
        tail=plans.each(shared.tail),
        late=plans.each(shared.late),
        parameters=plans.each(shared.parameters),
        overlaps_gradients=plans.each_flag(jobs.overlap_grad),
        overlaps_parameters=plans.each_flag(jobs.overlap_param),
        num_exchanges=often(shared.time.reduces_every_microbatch),
        num_gathers=often(shared.time.gathers_every_microbatch),
        other_chunks=chunks_in_rounds(choices.in_rounds, choices.chunks)[:, None],
        round_length=round_length(plans.each(jobs.pipeline), count),
        once=_once(plans),
        straggling=np.array(straggling(tables) - 1),
    )


def _layer(plans: Block, kind: str) -> LayerSeconds:
    """A layer of one kind. Shapes: (g, m, 1, k)."""
    layers, shared = plans.tables.layers, plans.tables.shared
    is_sharded = plans.is_any(shared.jobs.zero_stage == SHARDED)
    overlaps = plans.each_flag(shared.time.overlaps_shards > 0)
    total: Array | float = 0.0
    forward = np.zeros(1)
    for phase in PHASES:
        busy, launch, message = plans.of(layers.device[phase, kind]), plans.of(layers.launch[phase, kind]), np.zeros(1)
        if is_sharded:
            gather, scatter = plans.each(shared.gather[kind]), plans.each(shared.scatter[kind])
            again = plans.each_flag(shared.again[kind])
            again = again & IS_FULL if again.any() else again
            message = sharded_message(phase, gather, scatter, _often(plans), again)
            if shared.copies:
                gather, scatter = (plans.each(seconds) for seconds in shared.copies[kind])
                busy = busy + sharded_message(phase, gather, scatter, _often(plans), again)
        visible, host = waits(busy, launch, message, overlaps, plans.tables.factors)
        total = total + busy + visible + host
        if phase == "forward":
            forward = plans.mixed(np.asarray(total))
    return LayerSeconds(
        total=plans.mixed(np.asarray(total)),
        forward=forward,
        weight=plans.of(layers.weight[kind]),
    )


def _often(plans: Block) -> Often:
    """How often the block's plans gather and scatter shards. Shapes: (g, m, 1, 1)."""
    shared = plans.tables.shared
    return often_sharded(
        plans.each(shared.jobs.pipeline),
        plans.choices.count[:, None, None],
        plans.each_flag(shared.jobs.reshard_after_forward),
        plans.each_flag(shared.time.reduces_every_microbatch > 0),
        plans.each_flag(shared.time.keeps_in_pipeline > 0),
    )


def _ends(plans: Block) -> dict[str, LayerSeconds]:
    """Embedding and head. Shapes: (g, m, 1, 1)."""
    layers, shared = plans.tables.layers, plans.tables.shared
    first = plans.of(layers.embedding)
    if plans.is_any(shared.jobs.zero_stage == SHARDED):
        often = _often(plans)
        gather, scatter = plans.each(shared.root_gather), plans.each(shared.root_scatter)
        first = first + (gather * often.gathered + scatter * often.scattered)
        if shared.copies:
            gathered, scattered = (plans.each(seconds) for seconds in shared.copies[ROOT])
            first = first + (gathered * often.gathered + scattered * often.scattered)
    return {
        "embedding": end_of_model(first),
        "head": end_of_model(plans.of(layers.head)),
    }


def _once(plans: Block) -> Array:
    """Seconds once a step, with the activations that cross the link to the host. Shapes: (g, m, s, k)."""
    shared, choices = plans.tables.shared, plans.choices
    if not plans.is_any(shared.jobs.activation_offload):
        return plans.each(shared.once)
    kept = {kind: bytes_kept for kind, (bytes_kept, _) in plans.kept.items()}
    counts = {kind: [plans.each(column) for column in columns] for kind, columns in shared.counts.items()}
    each = offloaded_activations(kept, counts, np.asarray(choices.waits)[:, None])
    seconds = crossing_seconds(each * choices.count[:, None, None], plans.each(shared.host_link_rate))
    return np.asarray(plans.each(shared.once) + seconds)
