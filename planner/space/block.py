"""The seconds of all plans of some layouts at once.

The formulae are those of planner/jobs/step, which prices single jobs; a test holds both together. Shapes: arrays
broadcast over (layout, micro-batch, schedule, recomputation): g, m, s, k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.jobs.factors import Factors
from planner.jobs.passes import exposed, host_excess
from planner.jobs.step import ADAM_STATE_BYTES
from planner.jobs.work import PHASES
from planner.space.layouts import Ints
from planner.space.setting import Setting
from planner.space.tables import LayerTable, LayoutTable, MessageTable
from planner.space.variants import Variants
from profiles.transformer import Array, Flags
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
    compute: dict[str, Array]


def _layer(own: Block) -> _Layer:
    layers, shared = own.tables.layers, own.tables.shared
    total, compute = {}, {}
    is_sharded = own.is_any(shared.jobs.zero_stage == SHARDED)
    for kind, computed in layers.compute.items():
        seconds: Array | float = 0.0
        for phase in PHASES:
            busy = own.of(layers.device[phase, kind])
            if is_sharded:
                busy = busy + exposed(_unit_seconds(own, phase), busy, own.tables.factors)
            seconds = seconds + busy + host_excess(busy, own.of(layers.launch[phase, kind]))
        total[kind] = own.mixed(np.asarray(seconds))
        compute[kind] = own.mixed(own.of(computed))
    return _Layer(total=total, compute=compute)


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
    """Seconds of a micro-batch: on the slowest stage, what of it hides messages, on all stages. Shapes: (g, m, k)."""

    slowest: Array
    passing: Array
    everything: Array


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
    for kind, total in layer.total.items():
        everything = everything + of_kind[kind] * total
    return _Stages(slowest=slowest, passing=passing, everything=everything)


def step_seconds(own: Block) -> Array:
    """Seconds of a step. Shapes: (layout, micro-batch, schedule, recomputation)."""
    tables, choices, stages = own.tables, own.choices, _stages(own)
    steady = stages.slowest * choices.count[:, None] + _exchange(own, stages.passing) + _tail(own)
    result = steady[:, :, None, :]
    if own.is_any(tables.shared.jobs.pipeline > 1):
        others = np.maximum(stages.everything - stages.slowest, 0.0)
        result = result + others[:, :, None, :] * choices.filling[:, :, None]
        result = result + stages.slowest[:, :, None, :] * choices.rounds[:, :, None]
        message = tables.messages.seconds[tables.messages.combination[own.layouts][:, None], own.columns]
        result = result + (message[:, :, None] * choices.messages)[:, :, :, None]
    nodes = max(tables.at.num_devices / tables.at.devices_per_node, 1.0)
    return np.asarray(result * (1 + tables.factors.straggling * np.log2(nodes)))


def _exchange(own: Block, passing: Array) -> Array:
    """Gradients and parameters exchanged once a step, as far as passes do not hide them. Shapes: (g, m, k)."""
    shared, factors = own.tables.shared, own.tables.factors
    result: Array | float = 0.0
    for seconds, hides, share in (
        (own.each(shared.gradients), own.is_any(shared.jobs.overlap_grad), 2 / 3),
        (own.each(shared.parameters), own.is_any(shared.jobs.overlap_param), 1 / 3),
    ):
        if seconds.any():
            result = result + (exposed(seconds, passing * share, factors) if hides else seconds)
    return np.asarray(result)


def _tail(own: Block) -> Array:
    """Optimizer, what crosses the host link, and the host's work outside the layers. Shapes: (g, m, 1)."""
    at, shared = own.tables.at, own.tables.shared
    jobs, model = shared.jobs, at.model.transformer
    rate = max(at.device.host_gb_per_second, 1.0) * GB
    states = np.where(own.each(jobs.optimizer_offload), own.each(shared.updated) * ADAM_STATE_BYTES / rate, 0.0)
    seconds = own.each(shared.optimizer) + own.each(shared.time.host_step_ms) * 1e-3 + states
    if own.is_any(jobs.activation_offload):
        stream = own.of(own.tables.layers.tokens) * model.hidden_size[0] * ELEMENT_BYTES
        kept = stream * model.num_layers[0] * own.choices.count
        seconds = seconds + kept[:, :, None] / own.each(jobs.pipeline) / rate
    return np.asarray(seconds)
