"""What a rank does once a step, whatever its micro-batches: compressing gradients, updating weights, offloading."""

from __future__ import annotations

import numpy as np

from planner.cost.factors import Factors
from planner.cost.ingredients import Ingredients
from profiles.models.transformer import Array, Flags
from profiles.units import GB

# Master weights and two moments in 32 bits.
ADAM_STATE_BYTES = 12.0
ELEMENT_BYTES = 2.0


def codec_seconds(made: Ingredients, factors: Factors) -> Array:
    """Seconds of encoding and decoding a rank's gradients once a step."""
    return made.kernels.codec(factors, made.held.total)


def num_exchanges(zero_stage: Array, reduces_every: Flags, num_microbatches: Array) -> Array:
    """How often a step exchanges all gradients: with ZeRO stage 2 some software does so for every micro-batch."""
    return np.where((zero_stage == 2) & reduces_every, num_microbatches, 1.0)


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
    return made.kernels.optimizer(made.rules, factors, updated)


def crossing_seconds(num_bytes: Array, bytes_per_second: Array) -> Array:
    """Seconds that offloading adds: so many bytes cross the link to the host once each way.

    Model: half of it hides behind compute (assumed). Shapes: broadcast.
    """
    return np.asarray(num_bytes / np.maximum(bytes_per_second, GB))


def offloaded_states(made: Ingredients, updated: Array) -> Array:
    """Bytes of optimizer states that cross the link to the host once a step, each way."""
    return np.where(made.jobs.optimizer_offload, updated * ADAM_STATE_BYTES, 0.0)


def offloaded_activations(tokens: Array, hidden_size: Array, num_layers: Array, pipeline: Array) -> Array:
    """Bytes that a stage's layers send to the host per micro-batch: the residual stream of each. Shapes: broadcast."""
    return np.asarray(tokens * hidden_size * ELEMENT_BYTES * num_layers / pipeline)


def offload_seconds(made: Ingredients, updated: Array) -> Array:
    """Seconds per step of all that jobs offload. Shapes: one entry per job."""
    jobs, model = made.jobs, made.jobs.model
    kept = offloaded_activations(jobs.tokens, model.hidden_size, model.num_layers, jobs.pipeline)
    kept = np.where(jobs.activation_offload, kept * jobs.num_microbatches, 0.0)
    return crossing_seconds(offloaded_states(made, updated) + kept, made.host_link_rate)
