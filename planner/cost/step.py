"""Seconds of a training step by part: work and messages, overlapped and pipelined as the job's software does it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.cost.axes import pipeline
from planner.cost.factors import Factors
from planner.cost.job import Jobs
from planner.cost.layers import Pass, edge_pass, exposed, layer_pass, weight_seconds
from planner.cost.unit_costs import Ingredients
from planner.parts import PART_NAMES
from profiles.codecs.codec import GRADIENT_BYTES
from profiles.models.transformer import Array
from profiles.units import GB

KINDS: tuple[Literal["dense", "moe"], ...] = ("dense", "moe")
# Master weights and two moments in 32 bits.
ADAM_STATE_BYTES = 12.0
# Of the work on embedding and head a third each is forward, and weight gradients.
END_SHARE = 1 / 3


def step_seconds(made: Ingredients, factors: Factors) -> dict[str, Array]:
    """Seconds of a step by part, which add up to the step. Shapes: one entry per job in every array."""
    jobs = made.jobs
    ahead = {kind: layer_pass(made, factors, "forward", kind) for kind in KINDS}
    layer = {kind: ahead[kind] + layer_pass(made, factors, "backward", kind) for kind in KINDS}
    first = edge_pass(made, factors, "embedding")
    last = edge_pass(made, factors, "head")
    alone = jobs.pipeline == 1
    stages = []
    for place in range(3):
        stage = layer["dense"].times(made.layers.dense[place]) + layer["moe"].times(made.layers.moe[place])
        stage = stage + first.times(np.where(alone | (place == 0), 1.0, 0.0))
        stages.append(stage + last.times(np.where(alone | (place == 2), 1.0, 0.0)))
    totals = np.stack([stage.total for stage in stages])
    slowest = totals.max(axis=0)
    which = totals.argmax(axis=0)
    model = jobs.model
    ends = first.total + last.total
    everything, forward, weight = ends, ends * END_SHARE, ends * END_SHARE
    for kind in KINDS:
        count = model.num_moe_layers if kind == "moe" else model.num_layers - model.num_moe_layers
        everything = everything + layer[kind].total * count
        forward = forward + ahead[kind].total * count
        weight = weight + weight_seconds(made, factors, kind) * count
    parts = {
        name: np.choose(which, [getattr(stage, name) for stage in stages]) * jobs.num_microbatches
        for name in Pass.__slots__
    }
    parts["bubble"] = pipeline.idle_seconds(jobs, everything, slowest, forward / everything, weight / everything)
    parts["pipeline_comm"] = _pipeline_comm(made, factors)
    parts["data_comm"] = parts["data_comm"] + _exchange_comm(made, factors, stages, which)
    updated = optimizer_parameters(made)
    parts["codec"] = codec_seconds(made, factors)
    parts["optimizer"] = optimizer_seconds(made, factors, updated)
    parts["offload"] = offload_seconds(made, updated, offloaded_bytes(jobs) * jobs.num_microbatches)
    parts["host"] = parts["host"] + made.rules.host_step_ms * 1e-3
    busy = sum(parts.values())
    parts["stragglers"] = busy * factors.straggling * np.log2(made.num_nodes)
    return {name: parts[name] for name in PART_NAMES}


def _pipeline_comm(made: Ingredients, factors: Factors) -> Array:
    """Messages between stages: on the way through the pipeline once, and per micro-batch where nothing hides them."""
    jobs = made.jobs
    chunks = np.maximum(jobs.chunks, 1.0)
    filling = 2 * (jobs.pipeline - 1)
    steady = 2 * jobs.num_microbatches * chunks * np.where(jobs.overlap_pipeline, 0.0, 1.0)
    return (filling + steady) * made.message * factors.pipeline_comm


def _exchange_comm(made: Ingredients, factors: Factors, stages: list[Pass], which: NDArray[np.intp]) -> Array:
    """Gradients and parameters exchanged once a step, behind the last backward and the first forward if overlapped."""
    jobs = made.jobs
    gradients = made.exchange.gradients * factors.data_comm
    parameters = made.exchange.parameters * factors.data_comm
    # Of a stage's pass over one micro-batch a third is forward.
    passing = np.choose(which, [stage.compute + stage.recompute for stage in stages])
    hidden_gradients = exposed(gradients, passing * 2 / 3, factors)
    hidden_parameters = exposed(parameters, passing / 3, factors)
    return np.asarray(
        np.where(jobs.overlap_grad, hidden_gradients, gradients) * exchanges(made)
        + np.where(jobs.overlap_param, hidden_parameters, parameters)
    )


def codec_seconds(made: Ingredients, factors: Factors) -> Array:
    """Seconds of encoding and decoding a rank's gradients once a step: passes over memory, as element-wise kernels."""
    jobs = made.jobs
    passes = jobs.codec_passes + jobs.codec_decode_passes * jobs.data * jobs.context
    moved = passes * (made.held.common + made.held.expert) * GRADIENT_BYTES
    return np.asarray(moved / (made.memory_rate * factors.traffic_fraction))


def exchanges(made: Ingredients) -> Array:
    """How often a step exchanges all gradients: with ZeRO stage 2 some software does so for every micro-batch."""
    jobs = made.jobs
    every = (jobs.zero_stage == 2) & (made.rules.reduces_every_microbatch > 0)
    return np.where(every, jobs.num_microbatches, 1.0)


def optimizer_parameters(made: Ingredients) -> Array:
    """Parameters one rank updates."""
    jobs, held = made.jobs, made.held
    replicas = jobs.data * jobs.context
    expert_replicas = np.maximum(replicas * jobs.tensor / (jobs.expert * jobs.expert_tensor), 1.0)
    split = jobs.zero_stage > 0
    share = np.where(jobs.zero_stage == 3, jobs.shard, replicas)
    return np.asarray(held.common / np.where(split, share, 1.0) + held.expert / np.where(split, expert_replicas, 1.0))


def optimizer_seconds(made: Ingredients, factors: Factors, updated: Array) -> Array:
    """Seconds of updating a rank's share of the parameters on the device."""
    return np.asarray(updated * made.rules.optimizer_bytes / (made.memory_rate * factors.optimizer_fraction))


def offload_seconds(made: Ingredients, updated: Array, activation_bytes: Array) -> Array:
    """Seconds of what crosses the link to the host: optimizer states once each way, activations once each way.

    Model: half of it hides behind compute (assumed). Shapes: one entry per job.
    """
    jobs = made.jobs
    rate = np.maximum(made.host_link_rate, GB)
    states = np.where(jobs.optimizer_offload, updated * ADAM_STATE_BYTES * 2 / rate, 0.0)
    kept = np.where(jobs.activation_offload, activation_bytes * 2 / rate, 0.0)
    return np.asarray((states + kept) / 2)


def offloaded_bytes(jobs: Jobs) -> Array:
    """Bytes that a stage's layers send to the host per micro-batch: the residual stream of each."""
    return np.asarray(jobs.tokens * jobs.model.hidden_size * 2.0 * jobs.model.num_layers / jobs.pipeline)
