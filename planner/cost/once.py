"""What a rank does once a step, whatever its micro-batches: compressing gradients, updating weights, offloading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from planner.cost.axes.groups import FULL_ELEMENT_BYTES, FULL_PRECISIONS
from planner.cost.factors import Factors
from planner.cost.ingredients import Ingredients
from planner.cost.job import Jobs
from planner.cost.memory.footprint import memory_of
from planner.cost.software_memory import memory_rules
from planner.schedules.laws import WAITING_SHARE
from planner.schedules.registry import has
from profiles.models.profile import SCALED
from profiles.models.transformer import Array, Flags
from profiles.units import GB

# Master weights and two moments in 32 bits.
ADAM_STATE_BYTES = 12.0
# What updating a parameter passes through memory: states read and written, a gradient in 32 bits, weights in 16 bits.
HOST_ADAM_BYTES = 2 * ADAM_STATE_BYTES + 4 + 2


def codec_seconds(made: Ingredients, factors: Factors) -> Array:
    """Seconds of encoding and decoding a rank's gradients once a step."""
    return made.kernels.codec(factors, made.held.total)


def num_exchanges(zero_stage: Array, every: Flags, num_microbatches: Array) -> Array:
    """How often a step sends all gradients, or weights: with ZeRO stage 2 some software does at `every` micro-batch."""
    return np.where((zero_stage == 2) & every, num_microbatches, 1.0)


def optimizer_parameters(made: Ingredients) -> Array:
    """Parameters one rank updates."""
    jobs, held = made.jobs, made.held
    split = jobs.zero_stage > 0
    own = jobs.expert * jobs.expert_tensor
    of_experts = np.maximum(jobs.sharing * jobs.tensor / own, 1.0)
    return np.asarray(held.common / np.where(split, jobs.sharing, 1.0) + held.expert / np.where(split, of_experts, 1.0))


def optimizer_seconds(made: Ingredients, factors: Factors, updated: Array) -> Array:
    """Seconds of updating a rank's share of the parameters on the device; 0 where the host does.

    Gradients of fp16 are divided by their scale first, all that a rank holds.
    """
    seconds = np.where(made.jobs.optimizer_offload, 0.0, made.kernels.optimizer(made.rules, factors, updated))
    is_scaled = (made.jobs.precision == SCALED) & (made.rules.unscale_bytes > 0)
    return seconds + unscale_seconds(made, factors, updated) if np.any(is_scaled) else seconds


def unscale_seconds(made: Ingredients, factors: Factors, updated: Array) -> Array:
    """Seconds of dividing a rank's gradients by the scale of a loss in fp16; 0 in other precisions.

    Model: a pass over them at the rate of the optimizer's, of shards where the stage of ZeRO shards gradients.
    Ignores: the message of 4 bytes in which ranks agree, and that the host waits for it.
    """
    jobs, rules = made.jobs, made.rules
    gradients = np.where(jobs.zero_stage > 1, updated, made.held.total)
    share = np.where(jobs.precision == SCALED, rules.unscale_bytes / rules.optimizer_bytes, 0.0)
    return np.asarray(made.kernels.optimizer(rules, factors, gradients) * share)


def host_update_seconds(made: Ingredients, updated: Array) -> Array:
    """Seconds of updating a rank's share of the parameters on its host; 0 where the device does.

    Model: gradients go down the link and weights come up, as the stack keeps them; the states stay. In between all
    ranks of a node pass gradients, weights, states and new weights through the memory of its hosts. Nothing hides it.
    """
    jobs = made.jobs
    sent = jobs.stack.read(lambda stack: stack.memory.gradient_bytes + stack.memory.weight_bytes)
    sent = np.where(np.isin(jobs.precision, FULL_PRECISIONS), 2 * FULL_ELEMENT_BYTES, sent)
    together = np.minimum(jobs.devices_per_node, jobs.num_devices)
    seconds = updated * (
        sent / np.maximum(made.host_link_rate, GB) + together * HOST_ADAM_BYTES / made.host_memory_rate
    )
    return np.where(jobs.optimizer_offload, seconds, 0.0)


def crossing_seconds(num_bytes: Array, bytes_per_second: Array) -> Array:
    """Seconds that offloading adds: so many bytes cross the link to the host once each way.

    Model: half of it hides behind compute (assumed). Shapes: broadcast.
    """
    return np.asarray(num_bytes / np.maximum(bytes_per_second, GB))


def offloaded_states(made: Ingredients, updated: Array) -> Array:
    """Bytes of optimizer states that are on the host, and stay there."""
    return np.where(made.jobs.optimizer_offload, updated * ADAM_STATE_BYTES, 0.0)


def offloaded_activations(kept: Mapping[str, Array], counts: Mapping[str, Sequence[Array]], waits: Flags) -> Array:
    """Bytes per micro-batch that cross the link to the host, each way: all that the layers of the fullest stage keep.

    `kept` by one layer of each kind, of which stages have `counts`. Where weight gradients wait (`waits`), the
    gradients that they are made of go there as well. Shapes: broadcast.
    """
    stages = zip(*(counts[kind] for kind in kept), strict=True)
    every = [sum(count * one for count, one in zip(stage, kept.values(), strict=True)) for stage in stages]
    return np.asarray(reduce(np.maximum, every) * np.where(waits, 1 + WAITING_SHARE, 1.0))


def kept_by_layer(jobs: Jobs, share: float = 1.0) -> dict[str, Array]:
    """Bytes that a layer of each kind keeps per micro-batch, where jobs recompute a `share` of their layers."""
    kept = _kept(jobs)
    if share == 1:
        return kept
    rest = _kept(replace(jobs, recompute=np.full(len(jobs), "none")))
    return {kind: rest[kind] + (own - rest[kind]) * share for kind, own in kept.items()}


def _kept(jobs: Jobs) -> dict[str, Array]:
    rules = memory_rules(jobs)
    return {kind: memory_of(jobs, rules, kind).kept for kind in jobs.model.kinds}


def offload_seconds(made: Ingredients, updated: Array, share: float = 1.0) -> Array:
    """Seconds per step of all that jobs offload, which recompute a `share` of layers. Shapes: one entry per job."""
    jobs, seconds = made.jobs, host_update_seconds(made, updated)
    if np.any(jobs.activation_offload):
        waits = has(jobs.schedule, lambda each: each.waits) & (jobs.pipeline > 1)
        each = offloaded_activations(kept_by_layer(jobs, share), made.counts, waits) * jobs.num_microbatches
        crossing = crossing_seconds(each, made.host_link_rate)
        seconds = seconds + np.where(jobs.activation_offload, crossing, 0.0)
    return seconds
