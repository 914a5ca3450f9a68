"""Data parallelism: gradients are averaged, and with ZeRO parameters gathered, over the ranks that hold copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.axes.groups import pipeline_stride, replica_seconds, seconds
from planner.cost.axes.pipeline import StageCounts
from planner.cost.job import Jobs
from planner.cost.software_time import TimeRules
from planner.cost.unit_costs import Links
from profiles.codecs.codec import GRADIENT_BYTES
from profiles.machines.profile import Collective
from profiles.models.transformer import Array, Flags
from profiles.units import MIB

# Bytes of a parameter whose owner sends it as it is.
OWNED_BYTES = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageParameters:
    """Parameters one rank works with on the fullest stage: every rank's copy, and its share of the routed experts."""

    common: Array
    expert: Array

    @property
    def total(self) -> Array:
        """Both."""
        return self.common + self.expert


def stage_parameters(jobs: Jobs, layers: StageCounts) -> StageParameters:
    """Parameters of the first stage (with the embedding) or the last (with the head), whichever has more."""
    model = jobs.model
    of_stages: dict[int, Array] = {}
    experts = np.zeros(len(jobs))
    for kind, counts in layers.items():
        own, routed = model.parameters_of(kind)
        # Where stages are alike but for the ends, those in the midst have no more.
        for place in (0, -1) if model.is_alike else range(-1, len(counts) - 1):
            of_stages[place] = of_stages.get(place, np.zeros(len(jobs))) + counts[place] * own
        experts = experts + np.maximum(counts[0], counts[-1]) * routed
    ends = of_stages[0] if 0 in of_stages else of_stages[-1], of_stages[-1]
    tied_head = model.vocab_size * model.hidden_size
    split = jobs.vocabulary_split
    first = ends[0] / jobs.tensor + model.embedding_parameters / split
    last = ends[1] / jobs.tensor + np.where(model.tied, tied_head, model.head_parameters) / split
    common = np.where(jobs.pipeline > 1, np.maximum(first, last), first + model.head_parameters / split)
    if not model.is_alike:
        common = np.maximum(common, np.max(list(of_stages.values()), axis=0) / jobs.tensor)
    return StageParameters(common=common, expert=experts / (jobs.expert * jobs.expert_tensor))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Seconds, each alone, of averaging gradients and of gathering updated parameters after a step (ZeRO 1 and 2).

    Of `gradients`, `tail` cannot be sent before the backward pass is over; `late` is what they are known to take longer
    (or less long) in the midst of training.
    """

    gradients: Array
    parameters: Array
    tail: Array
    late: Array


def expert_replicas(jobs: Jobs) -> Array:
    """Ranks that hold the same experts. Shapes: one entry per job."""
    return np.maximum(jobs.data * jobs.context * jobs.tensor / (jobs.expert * jobs.expert_tensor), 1.0)


def exchange(jobs: Jobs, rules: TimeRules, links: Links, held: StageParameters) -> Exchange:
    """The exchange of a whole step's gradients, for jobs whose parameters are not sharded (ZeRO stage below 3)."""
    replicas = jobs.data * jobs.context
    of_experts = expert_replicas(jobs)
    per_gradient = rules.gradient_message_bytes * jobs.gradient_wire_fraction
    groups = [(held.common, replicas, jobs.tensor), (held.expert, of_experts, jobs.expert * jobs.expert_tensor)]
    # Where few ranks share the states, updated weights go no further.
    in_groups = (jobs.zero_stage < 3) & (jobs.shard > 1)
    whole = np.isin(jobs.zero_stage, (0, 1)) & ((jobs.zero_stage == 0) | (rules.owners_send_weights > 0))

    def taken(collective: Collective, num_bytes: Array, split: bool = False) -> tuple[Array, Array]:
        """Seconds of all messages and of the last, of so many bytes per parameter (of all ranks, where `split`)."""
        total = last = np.zeros(len(jobs))
        for parameters, size, stride in groups:
            count = num_messages(jobs, rules, parameters, whole)
            amount = parameters * num_bytes * (size if split else 1.0) / np.maximum(count, 1.0)
            ranks = np.where(in_groups, np.minimum(size, jobs.shard), size) if collective == "all_gather" else size
            one = replica_seconds(jobs, links, collective, amount, ranks, stride) * (count > 0)
            total, last = total + count * one, last + one
        return total, last

    reduced, tail = taken("all_reduce", per_gradient)
    gathered_fraction = rules.gradient_message_bytes * jobs.gradient_gather_fraction
    of_codec, tail_of_codec = taken("all_gather", gathered_fraction, split=True)
    is_gathered = jobs.gradient_gather_fraction > 0
    reduced, tail = reduced + np.where(is_gathered, of_codec, 0.0), tail + np.where(is_gathered, tail_of_codec, 0.0)
    scattered, _ = taken("reduce_scatter", per_gradient)
    gathered, _ = taken("all_gather", np.where(whole, OWNED_BYTES, rules.parameter_message_bytes))
    sharded = (jobs.zero_stage == 1) | (jobs.zero_stage == 2)
    return Exchange(
        gradients=np.where(whole, reduced, np.where(sharded, scattered, 0.0)) + tied_seconds(jobs, rules, links),
        parameters=np.where(sharded, gathered, 0.0),
        tail=np.where(whole & (rules.gradient_bucket_mib > 0), tail, 0.0),
        late=np.zeros(len(jobs)),
    )


def num_messages(jobs: Jobs, rules: TimeRules, parameters: Array, whole: Flags) -> Array:
    """In how many messages gradients go, or weights.

    Model: all at once, but where the software says otherwise: `whole` gradients in buckets that DDP fills while the
    backward pass runs, unless a codec makes one message of all; sharded ones layer by layer, and what has no layer.
    """
    bucket = rules.gradient_bucket_mib * MIB
    filled = np.ceil(parameters * GRADIENT_BYTES / np.maximum(bucket, 1.0))
    filled = np.where(jobs.overlap_grad, np.maximum(filled, 1.0), 1.0)
    units = np.ceil(jobs.model.num_layers / jobs.pipeline) + 1
    return np.where(bucket > 0, np.where(whole, filled, units) * (parameters > 0), 1.0)


def tied_seconds(jobs: Jobs, rules: TimeRules, links: Links) -> Array:
    """Summing the gradients of a tied embedding over the first and last stage, which both hold it."""
    model = jobs.model
    num_bytes = model.vocab_size * model.hidden_size / jobs.vocabulary_split * rules.gradient_message_bytes
    pair = np.where(model.tied & (jobs.pipeline > 1), 2.0, 1.0)
    return seconds(jobs, links, "all_reduce", num_bytes, pair, pipeline_stride(jobs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """Seconds, alone, of gathering one unit's parameters and of scattering its gradients: a layer, and the rest.

    `layer_parameters` and `root_parameters` are how many these have on one tensor-parallel rank.
    """

    layer_gather: Array
    layer_scatter: Array
    root_gather: Array
    root_scatter: Array
    layer_parameters: Array
    root_parameters: Array


def sharded(jobs: Jobs, rules: TimeRules, links: Links) -> Sharded:
    """What ZeRO stage 3 sends per micro-batch; replicas of the shards (HSDP) average on top. 0 for other stages."""
    model = jobs.model
    layer = np.where(model.is_moe, model.moe_shared_parameters + model.expert_parameters, model.dense_layer_parameters)
    layer = layer / jobs.tensor
    root = (model.embedding_parameters + model.head_parameters) / jobs.vocabulary_split
    active = jobs.zero_stage == 3
    size = np.where(active, jobs.shard, 1.0)
    replicas = np.where(active, np.maximum(jobs.data * jobs.context / jobs.shard, 1.0), 1.0)

    def gather(parameters: Array) -> Array:
        num_bytes = parameters * rules.parameter_message_bytes
        return replica_seconds(jobs, links, "all_gather", num_bytes, size, jobs.tensor)

    def scatter(parameters: Array) -> Array:
        num_bytes = parameters * rules.gradient_message_bytes * jobs.gradient_wire_fraction
        own = replica_seconds(jobs, links, "reduce_scatter", num_bytes, size, jobs.tensor)
        return own + replica_seconds(jobs, links, "all_reduce", num_bytes / size, replicas, jobs.tensor * size)

    return Sharded(
        layer_gather=gather(layer),
        layer_scatter=scatter(layer),
        root_gather=gather(root),
        root_scatter=scatter(root),
        layer_parameters=layer,
        root_parameters=root,
    )
