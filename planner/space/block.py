"""The seconds of all plans of some layouts at once.

The formulae are those of planner/cost/step, which prices single jobs; a test holds both together. Shapes: arrays
broadcast over (layout, micro-batch, schedule, recomputation): g, m, s, k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.axes.pipeline import bubble_left
from planner.cost.factors import Factors
from planner.cost.kernel_work import PHASES
from planner.cost.layers import exposed, host_excess
from planner.cost.step import ADAM_STATE_BYTES, END_SHARE
from planner.space.layouts import Ints
from planner.space.question import Setting
from planner.space.schedule_choices import Variants
from planner.space.tables import LayerTable, LayoutTable, MessageTable
from profiles.models.transformer import Array, Flags
from profiles.units import GB

ELEMENT_BYTES = 2.0
SHARDED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What all layouts of a setting share."""

    at: Setting
    layers: LayerTable
    messages: MessageTable
    shared: LayoutTable
    factors: Factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Layouts that share pipeline and data degree, and are alike in ZeRO 3 and offloaded activations or not.

    `rows` and `columns` are the places of their layers in the tables.
    """

    tables: Tables
    layouts: Ints
    choices: Variants
    rows: Ints
    columns: Ints

    def of(self, table: Array) -> Array:
        """This block's part of a table of layers by micro-batch. Shapes: (g, m, ...)."""
        return np.asarray(table[self.rows[:, None], self.columns])

    def each(self, column: Array | Flags) -> Array:
        """This block's part of a column of layouts. Shapes: (g, 1, 1)."""
        return np.asarray(column[self.layouts][:, None, None])

    def mixed(self, table: Array) -> Array:
        """Values by method as values by recomputation: so many layers of a stage are recomputed, the rest is not."""
        rest = table[:, :, :1]
        return np.asarray(rest + (table[:, :, self.choices.method] - rest) * self.choices.share)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer of each kind. Shapes: (g, m, k)."""

    total: dict[str, Array]
    forward: dict[str, Array]
    compute: dict[str, Array]


def _layer(own: Block) -> _Layer:
    layers, shared = own.tables.layers, own.tables.shared
    total, ahead, compute = {}, {}, {}
    is_sharded = own.is_any(shared.jobs.zero_stage == SHARDED)
    for kind, computed in layers.compute.items():
        seconds: Array | float = 0.0
        for phase in PHASES:
            busy = own.of(layers.device[phase, kind])
            if is_sharded:
                busy = busy + exposed(_unit_seconds(own, phase), busy, own.tables.factors)
            seconds = seconds + busy + host_excess(busy, own.of(layers.launch[phase, kind]))
            if phase == "forward":
                ahead[kind] = own.mixed(np.asarray(seconds))
        total[kind] = own.mixed(np.asarray(seconds))
        compute[kind] = own.mixed(own.of(computed))
    return _Layer(total=total, forward=ahead, compute=compute)


def _unit_seconds(own: Block, phase: str) -> Array:
    """What ZeRO 3 sends for one layer in one direction, per micro-batch. Shapes: (g, m, 1)."""
    shared, count = own.tables.shared, own.choices.count
    gather = own.each(shared.gather)
    if phase == "forward":
        return gather
    every = own.is_any(shared.time.reduces_every_microbatch > 0)
    return np.asarray(gather + own.each(shared.scatter) * (1.0 if every else 1.0 / count[:, None]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """Seconds of a micro-batch: on the slowest stage, what of it hides messages, and on all stages.

    `forward` and `weight` are the shares of forward and of weight gradients in it. Shapes: (g, m, k).
    """

    slowest: Array
    passing: Array
    everything: Array
    forward: Array
    weight: Array


def _stages(own: Block) -> _Stages:
    tables, layer = own.tables, _layer(own)
    alone = own.is_any(tables.shared.jobs.pipeline == 1)
    embedding = own.of(tables.layers.embedding)[:, :, None] + own.each(tables.shared.root)
    head = own.of(tables.layers.head)[:, :, None]
    embedding_compute = own.of(tables.layers.embedding_compute)[:, :, None]
    head_compute = own.of(tables.layers.head_compute)[:, :, None]
    slowest = passing = np.zeros((1, 1, 1))
    for place in range(1 if alone else 3):
        first, last = float(alone or place == 0), float(alone or place == 2)
        seconds = first * embedding + last * head
        compute = first * embedding_compute + last * head_compute
        for kind, total in layer.total.items():
            count = own.each(tables.shared.layers[kind][place])
            seconds = seconds + count * total
            compute = compute + count * layer.compute[kind]
        passing = np.where(seconds > slowest, compute, passing)
        slowest = np.maximum(seconds, slowest)
    model = tables.at.model.transformer
    routed = model.num_moe_layers[0]
    of_kind = {"dense": model.num_layers[0] - routed, "moe": routed}
    everything = embedding + head
    forward = weight = everything * END_SHARE
    for kind, total in layer.total.items():
        everything = everything + of_kind[kind] * total
        forward = forward + of_kind[kind] * layer.forward[kind]
        weight = weight + of_kind[kind] * own.of(tables.layers.weight[kind])[:, :, None]
    return _Stages(
        slowest=slowest,
        passing=passing,
        everything=everything,
        forward=forward / everything,
        weight=weight / everything,
    )


def step_seconds(own: Block) -> Array:
    """Seconds of a step. Shapes: (layout, micro-batch, schedule, recomputation)."""
    stages = _stages(own)
    once = _exchange(own, stages.passing) + _tail(own)
    return np.asarray((_pipelined(own, stages) + once[:, :, None, :]) * straggling(own.tables))


def pipelined_seconds(own: Block) -> Array:
    """The passes of all micro-batches with bubbles and messages. Shapes: as step_seconds."""
    return _pipelined(own, _stages(own))


def straggling(tables: Tables) -> float:
    """How many times longer a step takes because ranks wait for the slowest of many nodes."""
    nodes = max(tables.at.num_devices / tables.at.devices_per_node, 1.0)
    return float(1 + tables.factors.straggling * np.log2(nodes))


def _pipelined(own: Block, stages: _Stages) -> Array:
    tables, choices = own.tables, own.choices
    result = (stages.slowest * choices.count[:, None])[:, :, None, :]
    if own.is_any(tables.shared.jobs.pipeline > 1):
        others = np.maximum(stages.everything - stages.slowest, 0.0)
        result = result + (others[:, :, None, :] * choices.filling[:, :, None]) * _bubbles_left(own, stages)
        result = result + stages.slowest[:, :, None, :] * choices.rounds[:, :, None]
        message = tables.messages.seconds[tables.messages.combination[own.layouts][:, None], own.columns]
        result = result + (message[:, :, None] * choices.messages)[:, :, :, None]
    return np.asarray(result)


def _bubbles_left(own: Block, stages: _Stages) -> Array:
    """The share of 1F1B's bubble that each schedule leaves. Shapes: as step_seconds."""
    pipeline = own.each(own.tables.shared.jobs.pipeline)
    names = own.choices.schedules
    left = {name: bubble_left(name, pipeline, stages.forward, stages.weight) for name in set(names)}
    return np.stack([left[name] for name in names], axis=2)


def _exchange(own: Block, passing: Array) -> Array:
    """Gradients and parameters exchanged once a step, as far as passes do not hide them. Shapes: (g, m, k)."""
    shared, factors = own.tables.shared, own.tables.factors
    every = own.each((shared.jobs.zero_stage == 2) & (shared.time.reduces_every_microbatch > 0))
    times = np.where(every, own.choices.count[:, None], 1.0)
    result: Array | float = 0.0
    for seconds, hides, share, often in (
        (own.each(shared.gradients), own.is_any(shared.jobs.overlap_grad), 2 / 3, times),
        (own.each(shared.parameters), own.is_any(shared.jobs.overlap_param), 1 / 3, 1.0),
    ):
        if seconds.any():
            result = result + (exposed(seconds, passing * share, factors) if hides else seconds) * often
    return np.asarray(result)


def _tail(own: Block) -> Array:
    """Optimizer, what crosses the host link, and the host's work outside the layers. Shapes: (g, m, 1)."""
    at, shared = own.tables.at, own.tables.shared
    jobs, model = shared.jobs, at.model.transformer
    rate = max(at.device.host_gb_per_second, 1.0) * GB
    states = np.where(own.each(jobs.optimizer_offload), own.each(shared.updated) * ADAM_STATE_BYTES / rate, 0.0)
    seconds = own.each(shared.codec) + own.each(shared.optimizer) + own.each(shared.time.host_step_ms) * 1e-3 + states
    if own.is_any(jobs.activation_offload):
        stream = own.of(own.tables.layers.tokens) * model.hidden_size[0] * ELEMENT_BYTES
        kept = stream * model.num_layers[0] * own.choices.count
        seconds = seconds + kept[:, :, None] / own.each(jobs.pipeline) / rate
    return np.asarray(seconds)
