"""What plans share, priced once: a layer per shape, a message per link, states and gradients per layout.

The laws are those of planner/cost, asked about distinct combinations only; blocks of plans gather from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.axes import pipeline as pipeline_axis
from planner.cost.axes.groups import experts_apart, experts_inside
from planner.cost.axes.pipeline import StageCounts
from planner.cost.factors import Learned
from planner.cost.ingredients import Ingredients, ingredients_of
from planner.cost.job import Jobs
from planner.cost.layers import edge_pass, layer_work, shard_copies
from planner.cost.links import links_of
from planner.cost.memory.footprint import memory_of, parameters_of
from planner.cost.once import (
    codec_seconds,
    host_update_seconds,
    offloaded_states,
    optimizer_parameters,
    optimizer_seconds,
)
from planner.cost.software_memory import MemoryRules, memory_rules
from planner.cost.software_time import TimeRules, rules_of
from planner.space.layouts import Ints, Layouts
from planner.space.question import Setting, jobs_of
from planner.space.schedule_choices import METHODS
from planner.space.stage_table import StageTable, is_uneven, stage_tables
from profiles.models.operators import PHASES, Phase
from profiles.models.transformer import Array, Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """One layer by (combination, micro-batch, method).

    A combination is tensor, sequence, context and expert degree, whether the vocabulary is split, and how ranks lie
    that share experts.
    Shapes: seconds by phase and kind of layer, and bytes by kind, (combination, micro-batch, method); of weights'
    gradients, of the ends of the model and of the residual stream (combination, micro-batch).
    """

    sizes: Array
    device: dict[tuple[Phase, str], Array]
    launch: dict[tuple[Phase, str], Array]
    weight: dict[str, Array]
    kept: dict[str, Array]
    backward: dict[str, Array]
    embedding: Array
    head: Array
    tokens: Array
    combination: Ints

    def columns(self, micro_batch: Array) -> Ints:
        """Where the micro-batches stand in the table."""
        return np.searchsorted(self.sizes, micro_batch)


def _distinct(*columns: Ints) -> tuple[list[Ints], Ints]:
    """The distinct rows of columns, and which of them each row is."""
    unique, inverse = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    return list(unique.T), inverse.reshape(-1)


def layer_table(at: Setting, layouts: Layouts, sizes: Sequence[int], learned: Learned) -> LayerTable:
    """Every layer that any layout has, at every micro-batch of `sizes` and every method of recomputation."""
    groups = _expert_groups(at, layouts)
    _, combination = _distinct(
        layouts.tensor, layouts.sequence_parallel, layouts.context, layouts.expert, layouts.vocab_parallel, *groups
    )
    # Of those that are alike in these, the first stands for all; what it has of other axes says where experts lie.
    one = layouts.take(np.unique(combination, return_index=True)[1])
    shape = (len(one), len(sizes), len(METHODS))
    jobs = _layer_jobs(at, one, sizes)
    ingredients = taught(ingredients_of(jobs), learned)
    rules = memory_rules(jobs)
    device, launch, weight = {}, {}, {}
    kept, backward = {}, {}
    for kind in jobs.model.kinds:
        works = {phase: layer_work(ingredients, learned.factors, phase, kind) for phase in PHASES}
        for phase, work in works.items():
            device[phase, kind], launch[phase, kind] = work.device.reshape(shape), work.launch.reshape(shape)
        weight[kind] = ingredients.kernels.weights(ingredients.rules, learned.factors, kind).reshape(shape)[:, :, 0]
        memory = memory_of(jobs, rules, kind)
        kept[kind], backward[kind] = memory.kept.reshape(shape), memory.backward.reshape(shape)

    def end(part: str) -> Array:
        return np.asarray(edge_pass(ingredients, learned.factors, part).total).reshape(shape)[:, :, 0]

    return LayerTable(
        sizes=np.array(sizes, dtype=float),
        device=device,
        launch=launch,
        weight=weight,
        kept=kept,
        backward=backward,
        embedding=end("embedding"),
        head=end("head"),
        tokens=jobs.tokens.reshape(shape)[:, :, 0],
        combination=combination,
    )


def _layer_jobs(at: Setting, one: Layouts, sizes: Sequence[int]) -> Jobs:
    """Each layout's layer at every micro-batch and method, one after the other in this order."""
    count, sharing = len(sizes) * len(METHODS), one.expert > 1

    def each(column: Ints) -> Ints:
        return np.repeat(column, count)

    return jobs_of(
        at,
        tensor=each(one.tensor).astype(float),
        sequence_parallel=each(one.sequence_parallel).astype(bool),
        vocabulary_split=each(np.where(one.vocab_parallel > 0, one.tensor, 1)).astype(float),
        context=each(one.context).astype(float),
        expert=each(one.expert).astype(float),
        data=each(np.where(sharing, one.data, 1)).astype(float),
        pipeline=each(np.where(sharing, one.pipeline, 1)).astype(float),
        data_outside=each(one.data_outside * sharing).astype(bool),
        micro_batch=np.tile(np.repeat(np.array(sizes, dtype=float), len(METHODS)), len(one)),
        recompute=np.tile(np.array(METHODS), len(one) * len(sizes)),
    )


def _expert_groups(at: Setting, layouts: Layouts) -> tuple[Ints, Ints]:
    """How many ranks that share experts are in one fast domain, and how far apart; 1 where none do."""
    alone = layouts.expert == 1
    if alone.all():
        return layouts.expert, layouts.expert
    jobs = layout_jobs(at, layouts)
    inside, apart = experts_inside(jobs, jobs.expert), experts_apart(jobs)
    return np.where(alone, 1, inside).astype(np.int64), np.where(alone, 1, apart).astype(np.int64)


def taught(ingredients: Ingredients, learned: Learned) -> Ingredients:
    """The ingredients with what was learned of their software."""
    return replace(ingredients, rules=rules_of(ingredients.jobs, learned))


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTable:
    """Seconds of a message between stages. Shapes: (combination, micro-batch)."""

    seconds: Array
    combination: Ints


def message_table(at: Setting, layouts: Layouts, sizes: Sequence[int], learned: Learned) -> MessageTable:
    """One message per tensor, sequence, context and pipeline degree, order of axes, and micro-batch."""
    keys, combination = _distinct(
        layouts.tensor, layouts.sequence_parallel, layouts.context, layouts.pipeline, layouts.data_outside
    )
    tensor, sequence, context, pipeline, outside = (np.repeat(key, len(sizes)) for key in keys)
    jobs = jobs_of(
        at,
        tensor=tensor.astype(float),
        sequence_parallel=sequence.astype(bool),
        context=context.astype(float),
        pipeline=pipeline.astype(float),
        data_outside=outside.astype(bool),
        micro_batch=np.tile(np.array(sizes, dtype=float), len(keys[0])),
    )
    seconds = pipeline_axis.message_seconds(jobs, rules_of(jobs, learned), links_of(jobs))
    seconds = seconds * learned.factors.pipeline_comm
    return MessageTable(seconds=seconds.reshape(-1, len(sizes)), combination=combination)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutTable:
    """What a layout decides alone. Shapes: one entry per layout.

    `gradients` (with `tail` and `late` as in StepCosts) and `parameters` are seconds of exchanging them once a step,
    `gather` and `scatter` of the shards of one layer of a kind (ZeRO 3), `root_` of what belongs to no layer, all each
    alone; of layers gathered `again` for the backward pass if they are recomputed; `copies` of the same by the device,
    see shard_copies; `once` of
    compressing gradients, updating weights, offloading their states, of which there are `offloaded_states` bytes, and
    of the host outside the layers. `is_uneven`: whether some stages have a layer more than others. `counts` are layers
    of the first, a middle and the last stage by kind. `stages` are by number of chunks, and whether they go through a
    V; without leading dense layers chunks change nothing, and there is the entry of one chunk alone.
    """

    jobs: Jobs
    rules: MemoryRules
    time: TimeRules
    gradients: Array
    tail: Array
    late: Array
    parameters: Array
    gather: dict[str, Array]
    scatter: dict[str, Array]
    again: dict[str, Flags]
    root_gather: Array
    root_scatter: Array
    copies: dict[str, tuple[Array, Array]]
    once: Array
    offloaded_states: Array
    host_link_rate: Array
    is_uneven: Flags
    counts: StageCounts
    stages: dict[tuple[int, bool], StageTable]

    @property
    def least_state_bytes(self) -> Array:
        """What the states of the fullest stage take at the least, per layout."""
        return np.asarray(np.min([table.state_bytes for table in self.stages.values()], axis=0))


def layout_table(at: Setting, layouts: Layouts, learned: Learned) -> LayoutTable:
    """States and gradient exchange of every layout."""
    jobs = layout_jobs(at, layouts)
    ingredients = taught(ingredients_of(jobs), learned)
    rules = memory_rules(jobs)
    layer = parameters_of(jobs, rules)
    updated = optimizer_parameters(ingredients)
    once = codec_seconds(ingredients, learned.factors) + optimizer_seconds(ingredients, learned.factors, updated)
    once = once + ingredients.rules.host_step_ms * 1e-3
    offloaded = offloaded_states(ingredients, updated)
    once = once + host_update_seconds(ingredients, updated)
    factor = learned.factors.data_comm
    return LayoutTable(
        jobs=jobs,
        rules=rules,
        time=ingredients.rules,
        gradients=ingredients.exchange.gradients * factor,
        tail=ingredients.exchange.tail * factor,
        late=ingredients.exchange.late * factor,
        parameters=ingredients.exchange.parameters * factor,
        gather={kind: seconds * factor for kind, seconds in ingredients.sharded.layer_gather.items()},
        scatter={kind: seconds * factor for kind, seconds in ingredients.sharded.layer_scatter.items()},
        again=ingredients.sharded.layer_again,
        root_gather=ingredients.sharded.root_gather * factor,
        root_scatter=ingredients.sharded.root_scatter * factor,
        copies=shard_copies(ingredients, learned.factors),
        once=once,
        offloaded_states=offloaded,
        host_link_rate=ingredients.host_link_rate,
        is_uneven=is_uneven(jobs),
        counts=ingredients.counts,
        stages=stage_tables(at, layouts, jobs, rules, layer),
    )


def layout_jobs(at: Setting, layouts: Layouts) -> Jobs:
    """The layouts as jobs of one micro-batch of one sample."""
    return jobs_of(
        at,
        tensor=layouts.tensor.astype(float),
        sequence_parallel=layouts.sequence_parallel.astype(bool),
        vocabulary_split=np.where(layouts.vocab_parallel > 0, layouts.tensor, 1.0),
        context=layouts.context.astype(float),
        expert=layouts.expert.astype(float),
        pipeline=layouts.pipeline.astype(float),
        data=layouts.data.astype(float),
        zero_stage=layouts.zero_stage.astype(float),
        shard=layouts.shard.astype(float),
        reshard_after_forward=layouts.zero_stage == 3,
        optimizer_offload=layouts.optimizer_offload.astype(bool),
        activation_offload=layouts.activation_offload.astype(bool),
        data_outside=layouts.data_outside.astype(bool),
        first_fewer=layouts.first_fewer.astype(float),
        last_fewer=layouts.last_fewer.astype(float),
    )
