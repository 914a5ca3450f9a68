"""Pipelines across two kinds of devices: the first stages stand on one, the others on the other, layers as suits both.

Layers are dealt out so that the slowest stage is as fast as memory allows; then plans are ranked by the closed form of
1F1B, and the best are timed again by replay of all stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.axes.pipeline import layers_from
from planner.cost.factors import Factors, Learned
from planner.cost.job import Jobs
from planner.cost.memory.footprint import StageMemory, stage_memory
from planner.cost.memory.stage_content import StageContent
from planner.cost.once import num_exchanges, optimizer_parameters, optimizer_seconds
from planner.cost.step import exposed_exchange
from planner.mixed.mixture import Mixture, Rows
from planner.space.layouts import Ints
from planner.space.stage_passes import StagePasses, passes_of
from profiles.models.transformer import Array, Flags

BISECTIONS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """Plans of one pipeline degree with their layers dealt out, first pool first.

    Shapes: `layers` and `allocated_bytes` (plan, stage), seconds and `fits` (plan,). `second` is the first stage that
    stands on the second pool. `pipeline_seconds` is the closed form's, `once_seconds` what a step does once.
    """

    asked: Mixture
    rows: Rows
    second: int
    passes: tuple[StagePasses, StagePasses]
    layers: Ints
    stage_seconds: Array
    message_seconds: Array
    allocated_bytes: Array
    device_bytes: Array
    fits: Flags
    pipeline_seconds: Array
    once_seconds: Array

    @property
    def step_seconds(self) -> Array:
        """Seconds of a step by the closed form, of ranks that are equally fast."""
        return self.pipeline_seconds + self.once_seconds

    def pool_of(self, stage: int) -> int:
        """0 or 1: where a stage stands."""
        return int(stage >= self.second)


def deal(asked: Mixture, rows: Rows, learned: Learned) -> list[Dealt]:
    """All plans of `rows`, one entry per pipeline degree; those that fit in no way have `fits` false."""
    degrees = np.unique(rows.layouts.pipeline)
    return [_deal(asked, rows.take(np.flatnonzero(rows.layouts.pipeline == degree)), learned) for degree in degrees]


def _deal(asked: Mixture, rows: Rows, learned: Learned) -> Dealt:
    stages = int(rows.layouts.pipeline[0])
    second = stages * asked.first.num_devices // asked.num_devices
    first, second_jobs = (rows.jobs(part.at) for part in asked.parts)
    passes = (passes_of(first, learned), passes_of(second_jobs, learned))
    held = (stage_memory(first), stage_memory(second_jobs))
    pools = (np.arange(stages) >= second).astype(np.int64)
    each = np.stack([_layer_seconds(own) for own in passes], axis=1)[:, pools]
    ends = np.zeros_like(each)
    ends[:, 0] = passes[0].embedding.total
    ends[:, -1] = passes[1].head.total
    total = asked.first.at.model.num_layers
    most = _most_layers(asked, held, pools, total)
    layers, dealt = fewest_seconds(each, ends, most, total)
    allocated, device = _bytes(held, pools, layers)
    memory = np.array([part.at.memory_bytes for part in asked.parts])[pools]
    message = _messages(asked, passes, pools)
    seconds = layers * each + ends
    slowest = seconds.max(axis=1)
    # 1F1B fills and drains once; every message on the way, and those of all micro-batches, are waited for.
    pipelined = rows.count * slowest + (seconds.sum(axis=1) - slowest)
    pipelined = pipelined + 2 * message.sum(axis=1) + 2 * rows.count * message.max(axis=1)
    once = [_once(own, layers[:, pools == pool].max(axis=1), learned.factors) for pool, own in enumerate(passes)]
    return Dealt(
        asked=asked,
        rows=rows,
        second=second,
        passes=passes,
        layers=layers,
        stage_seconds=seconds,
        message_seconds=message,
        allocated_bytes=allocated,
        device_bytes=device.max(axis=1),
        fits=dealt & (device <= memory).all(axis=1),
        pipeline_seconds=pipelined,
        once_seconds=np.maximum(*once),
    )


def _main_kind(passes: StagePasses) -> str:
    """The kind of layer that stages are measured by: where few dense layers lead, they are the lighter ones."""
    return passes.ingredients.jobs.model.kinds[-1]


def _layer_seconds(passes: StagePasses) -> Array:
    kind = _main_kind(passes)
    return passes.ahead[kind].total + passes.again[kind].total


def _content(jobs: Jobs, pipeline: int, stage: int, before: Array, layers: Array) -> StageContent:
    count = len(jobs)
    return StageContent(
        index=np.full(count, float(stage)),
        exists=np.ones(count, dtype=bool),
        is_first=np.full(count, stage == 0),
        is_last=np.full(count, stage == pipeline - 1),
        layers=layers_from(jobs, before, layers, layers),
    )


def stage_content(dealt: Dealt, row: int, stage: int) -> StageContent:
    """What a stage of a plan holds, as a single job."""
    jobs = dealt.passes[dealt.pool_of(stage)].ingredients.jobs.take(np.array([row]))
    counts = dealt.layers[row].astype(float)
    return _content(jobs, len(counts), stage, counts[:stage].sum(keepdims=True), counts[stage : stage + 1])


def bytes_by_part(dealt: Dealt, row: int, stage: int) -> dict[str, float]:
    """Bytes of a stage of a plan, by part."""
    jobs = dealt.passes[dealt.pool_of(stage)].ingredients.jobs.take(np.array([row]))
    held = stage_memory(jobs).at(stage_content(dealt, row, stage))
    return {name: float(values[0]) for name, values in held.parts.items()}


def _bytes(memory: tuple[StageMemory, StageMemory], pools: Ints, layers: Ints) -> tuple[Array, Array]:
    """Bytes allocated, and those that the driver shows, on each stage. Shapes: (plan, stage)."""
    allocated, device = np.empty(layers.shape), np.empty(layers.shape)
    before = np.cumsum(layers, axis=1) - layers
    for stage, pool in enumerate(pools):
        own = memory[pool]
        counts = before[:, stage].astype(float), layers[:, stage].astype(float)
        held = own.at(_content(own.jobs, len(pools), stage, *counts))
        allocated[:, stage] = held.allocated_bytes
        device[:, stage] = held.needed_bytes + own.rules.context_bytes
    return allocated, device


def _most_layers(asked: Mixture, held: tuple[StageMemory, StageMemory], pools: Ints, total: int) -> Ints:
    """How many layers each stage has room for. Shapes: (plan, stage).

    Model: bytes grow with the layers along the chord between one layer and twice an even share, which lies above what
    they really are there, the largest of several lines.
    """
    pipeline, count = len(pools), len(held[0].jobs)
    many = float(min(total, 2 * -(-total // pipeline)))
    memory = np.array([part.at.memory_bytes for part in asked.parts])[pools]
    _, least = _bytes(held, pools, np.ones((count, pipeline), dtype=np.int64))
    if many <= 1:
        return np.where(least <= memory, 1, 0)
    _, much = _bytes(held, pools, np.full((count, pipeline), int(many)))
    each = (much - least) / (many - 1)
    return np.clip(np.floor(1 + (memory - least) / each), 0, many).astype(np.int64)


def fewest_seconds(each: Array, ends: Array, most: Ints, total: int) -> tuple[Ints, Flags]:
    """Layers by stage so that the slowest is as fast as can be; whether there is room for all.

    Model: a bound on the slowest stage lets every stage take what it can; the least bound that takes all layers is
    found by bisection. What is then left over is taken from the slowest stages. Exact for layers that are alike.
    Shapes: (plan, stage).
    """
    possible = (most >= 1).all(axis=1) & (most.sum(axis=1) >= total)
    room = np.where(possible[:, None], most, total)

    def within(bound: Array) -> Ints:
        return np.clip(np.floor((bound[:, None] - ends) / each * (1 + 1e-12)), 0, room).astype(np.int64)

    low, high = np.zeros(len(each)), (ends + total * each).max(axis=1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        taken = within(middle)
        enough = (taken >= 1).all(axis=1) & (taken.sum(axis=1) >= total)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    layers = within(high)
    everyone = np.arange(len(each))
    while (spare := layers.sum(axis=1) > total).any():
        seconds = np.where(layers > 1, layers * each + ends, -1.0)
        layers[everyone, seconds.argmax(axis=1)] -= spare
    return layers, possible


def _messages(asked: Mixture, passes: tuple[StagePasses, StagePasses], pools: Ints) -> Array:
    """Seconds of one message of each stage to the next, 0 of the last. Shapes: (plan, stage)."""
    own = np.stack([np.asarray(one.ingredients.message) for one in passes], axis=1)[:, pools]
    across = [
        one.ingredients.message * max(1.0, part.at.network_bytes_per_second / asked.between_bytes_per_second)
        for one, part in zip(passes, asked.parts, strict=True)
    ]
    boundary = int(pools.argmax()) - 1
    own[:, boundary] = np.maximum(*across)
    own[:, -1] = 0.0
    return own


def _once(passes: StagePasses, most_layers: Array, factors: Factors) -> Array:
    """Exchange of gradients and parameters, optimizer and the host's own, on a pool's fullest stage. Shapes: (plan,).

    Model: what an even share would take, in proportion to the layers.
    """
    ingredients, kind = passes.ingredients, _main_kind(passes)
    jobs = ingredients.jobs
    share = most_layers / np.ceil(jobs.model.num_layers / jobs.pipeline)
    gradients, parameters = (
        exposed_exchange(seconds * factors.data_comm * share, most_layers * beside[kind].total, overlaps, factors)
        for seconds, beside, overlaps in (
            (ingredients.exchange.gradients, passes.again, jobs.overlap_grad),
            (ingredients.exchange.parameters, passes.ahead, jobs.overlap_param),
        )
    )
    rules = ingredients.rules
    gradients, parameters = (
        seconds * num_exchanges(jobs.zero_stage, every > 0, jobs.num_microbatches)
        for seconds, every in (
            (gradients, rules.reduces_every_microbatch),
            (parameters, rules.gathers_every_microbatch),
        )
    )
    optimizer = optimizer_seconds(ingredients, factors, optimizer_parameters(ingredients)) * share
    return np.asarray(gradients + parameters + optimizer + ingredients.rules.host_step_ms * 1e-3)
