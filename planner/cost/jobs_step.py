"""The step of single jobs by part: every kernel and message of each priced alone, then put together by the law."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.pipeline import chunks_in_rounds, idle_terms, round_length
from planner.cost.factors import Factors
from planner.cost.ingredients import Ingredients
from planner.cost.layers import Pass, edge_pass, layer_pass
from planner.cost.once import codec_seconds, num_exchanges, offload_seconds, optimizer_parameters, optimizer_seconds
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
from planner.parts import PART_NAMES
from planner.schedules.registry import has
from profiles.machines.devices import MICROSECOND
from profiles.models.transformer import Array

ENDS = ("embedding", "head")


def step_seconds(made: Ingredients, factors: Factors) -> dict[str, Array]:
    """Seconds of a step by part, which add up to the step. Shapes: one entry per job in every array."""
    kinds = made.jobs.model.kinds
    ahead = {kind: layer_pass(made, factors, "forward", kind) for kind in kinds}
    layers = {kind: ahead[kind] + layer_pass(made, factors, "backward", kind) for kind in kinds}
    ends = tuple(edge_pass(made, factors, name) for name in ENDS)
    updated = optimizer_parameters(made)
    once = {
        "codec": codec_seconds(made, factors),
        "offload": offload_seconds(made, updated),
        "optimizer": optimizer_seconds(made, factors, updated),
        "host": made.rules.host_step_ms * 1e-3,
    }
    step = step_of(_costs(made, factors, ahead, layers, ends, once), factors)
    parts = _of_slowest(made, step, layers, ends)
    parts["bubble"] = step.bubble + np.zeros(len(made.jobs))
    parts["pipeline_comm"] = step.messages + np.zeros(len(made.jobs))
    parts["data_comm"] = parts["data_comm"] + step.exchange
    for name, seconds in once.items():
        parts[name] = parts.get(name, 0.0) + seconds
    parts["stragglers"] = step.total - step.total / (1 + step.straggling)
    return {name: parts[name] for name in PART_NAMES}


def _costs(
    made: Ingredients,
    factors: Factors,
    ahead: dict[str, Pass],
    layers: dict[str, Pass],
    ends: tuple[Pass, ...],
    once: dict[str, Array],
) -> StepCosts:
    """What the law of a step reads of the jobs."""
    jobs, model = made.jobs, made.jobs.model
    chunks = np.maximum(jobs.chunks, 1.0)
    filling, rounds = idle_terms(jobs.pipeline, jobs.chunks, jobs.per_pass)
    steady = np.where(jobs.pipeline > 1, 2 * jobs.num_microbatches * chunks, 0.0)
    beside, rules = np.where(jobs.overlap_pipeline, steady, 0.0), made.rules
    return StepCosts(
        layers=_layers(made, factors, ahead, layers, ends),
        counts={
            **made.counts,
            **end_counts(jobs.pipeline, num_places(made)),
            ACTION: action_counts(jobs.pipeline, chunks, num_places(made)),
        },
        model_counts={kind: model.num_of(kind) for kind in layers}
        | dict.fromkeys(ENDS, np.ones(1))
        | {ACTION: np.where(jobs.pipeline > 1, jobs.pipeline * chunks, 0.0)},
        pipeline=jobs.pipeline,
        num_microbatches=jobs.num_microbatches,
        schedule=jobs.schedule,
        filling=filling * jobs.pipeline_passes,
        rounds=rounds * jobs.pipeline_passes,
        message=made.message * factors.pipeline_comm,
        num_messages=2 * (jobs.pipeline - 1) * jobs.pipeline_passes + steady - beside,
        num_beside=beside,
        gradients=made.exchange.gradients * factors.data_comm,
        tail=made.exchange.tail * factors.data_comm,
        late=made.exchange.late * factors.data_comm,
        parameters=made.exchange.parameters * factors.data_comm,
        overlaps_gradients=jobs.overlap_grad,
        overlaps_parameters=jobs.overlap_param,
        num_exchanges=num_exchanges(jobs.zero_stage, rules.reduces_every_microbatch > 0, jobs.num_microbatches),
        num_gathers=num_exchanges(jobs.zero_stage, rules.gathers_every_microbatch > 0, jobs.num_microbatches),
        other_chunks=chunks_in_rounds(has(jobs.schedule, lambda each: each.counts.in_rounds), chunks),
        round_length=round_length(jobs.pipeline, jobs.per_pass),
        once=np.asarray(sum(once.values())),
        straggling=factors.straggling * np.log2(made.num_nodes),
    )


def _layers(
    made: Ingredients, factors: Factors, ahead: dict[str, Pass], layers: dict[str, Pass], ends: tuple[Pass, ...]
) -> dict[str, LayerSeconds]:
    """Seconds of a layer by kind, the ends and the pipeline's own actions among them."""
    weights = {kind: made.kernels.weights(made.rules, factors, kind) for kind in layers}
    return (
        {
            kind: LayerSeconds(total=layer.total, forward=ahead[kind].total, weight=weights[kind])
            for kind, layer in layers.items()
        }
        | {name: end_of_model(end.total) for name, end in zip(ENDS, ends, strict=True)}
        | {ACTION: pipeline_actions(made.rules.pipeline_action_us * MICROSECOND)}
    )


def num_places(made: Ingredients) -> int:
    """How many stages are told apart."""
    return len(next(iter(made.counts.values())))


def _of_slowest(made: Ingredients, step: Step, layers: dict[str, Pass], ends: tuple[Pass, ...]) -> dict[str, Array]:
    """Seconds of the slowest stage's passes by their parts, over all micro-batches of a step."""
    jobs, (first, last) = made.jobs, ends
    counts = end_counts(jobs.pipeline, num_places(made))
    stages = []
    for place in range(num_places(made)):
        stage = first.times(counts["embedding"][place]) + last.times(counts["head"][place])
        stages.append(sum((layer.times(made.counts[kind][place]) for kind, layer in layers.items()), stage))
    where = np.broadcast_to(step.place, len(jobs))
    parts = {
        name: np.choose(where, [getattr(stage, name) for stage in stages]) * jobs.num_microbatches
        for name in Pass.__slots__
    }
    chunks = np.maximum(jobs.chunks, 1.0)
    actions = pipeline_actions(made.rules.pipeline_action_us * MICROSECOND).total
    return parts | {"host": parts["host"] + action_counts(jobs.pipeline, chunks)[0] * actions * jobs.num_microbatches}
