"""The step of single jobs by part: every kernel and message of each priced alone, then put together by the law."""

from __future__ import annotations

from typing import Literal

import numpy as np

from planner.cost.axes.pipeline import idle_terms
from planner.cost.factors import Factors
from planner.cost.layers import Pass, edge_pass, layer_pass, weight_seconds
from planner.cost.once import codec_seconds, num_exchanges, offload_seconds, optimizer_parameters, optimizer_seconds
from planner.cost.step import NUM_PLACES, EndSeconds, LayerSeconds, Step, StepCosts, step_of
from planner.cost.unit_costs import Ingredients
from planner.parts import PART_NAMES
from profiles.models.transformer import Array

KINDS: tuple[Literal["dense", "moe"], ...] = ("dense", "moe")


def step_seconds(made: Ingredients, factors: Factors) -> dict[str, Array]:
    """Seconds of a step by part, which add up to the step. Shapes: one entry per job in every array."""
    ahead = {kind: layer_pass(made, factors, "forward", kind) for kind in KINDS}
    layers = {kind: ahead[kind] + layer_pass(made, factors, "backward", kind) for kind in KINDS}
    ends = edge_pass(made, factors, "embedding"), edge_pass(made, factors, "head")
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
    ahead: dict[Literal["dense", "moe"], Pass],
    layers: dict[Literal["dense", "moe"], Pass],
    ends: tuple[Pass, Pass],
    once: dict[str, Array],
) -> StepCosts:
    """What the law of a step reads of the jobs."""
    jobs, model = made.jobs, made.jobs.model
    chunks = np.maximum(jobs.chunks, 1.0)
    filling, rounds = idle_terms(jobs.pipeline, jobs.chunks, jobs.num_microbatches)
    steady = np.where(jobs.overlap_pipeline, 0.0, 2 * jobs.num_microbatches * chunks)
    embedding, head = (EndSeconds(total=end.total, compute=end.compute) for end in ends)
    return StepCosts(
        layers={
            kind: LayerSeconds(
                total=layer.total,
                forward=ahead[kind].total,
                compute=layer.compute + layer.recompute,
                weight=weight_seconds(made, factors, kind),
            )
            for kind, layer in layers.items()
        },
        counts={"dense": made.layers.dense, "moe": made.layers.moe},
        model_counts={"dense": model.num_layers - model.num_moe_layers, "moe": model.num_moe_layers},
        embedding=embedding,
        head=head,
        pipeline=jobs.pipeline,
        num_microbatches=jobs.num_microbatches,
        schedule=jobs.schedule,
        filling=filling,
        rounds=rounds,
        message=made.message * factors.pipeline_comm,
        num_messages=2 * (jobs.pipeline - 1) + steady,
        gradients=made.exchange.gradients * factors.data_comm,
        parameters=made.exchange.parameters * factors.data_comm,
        overlaps_gradients=jobs.overlap_grad,
        overlaps_parameters=jobs.overlap_param,
        num_exchanges=num_exchanges(jobs.zero_stage, made.rules.reduces_every_microbatch > 0, jobs.num_microbatches),
        once=np.asarray(sum(once.values())),
        straggling=factors.straggling * np.log2(made.num_nodes),
    )


def _of_slowest(
    made: Ingredients, step: Step, layers: dict[Literal["dense", "moe"], Pass], ends: tuple[Pass, Pass]
) -> dict[str, Array]:
    """Seconds of the slowest stage's passes by their parts, over all micro-batches of a step."""
    jobs, (first, last) = made.jobs, ends
    alone = jobs.pipeline == 1
    stages = []
    for place in range(NUM_PLACES):
        stage = layers["dense"].times(made.layers.dense[place]) + layers["moe"].times(made.layers.moe[place])
        stage = stage + first.times(np.where(alone | (place == 0), 1.0, 0.0))
        stages.append(stage + last.times(np.where(alone | (place == NUM_PLACES - 1), 1.0, 0.0)))
    where = np.broadcast_to(step.place, len(jobs))
    return {
        name: np.choose(where, [getattr(stage, name) for stage in stages]) * jobs.num_microbatches
        for name in Pass.__slots__
    }
