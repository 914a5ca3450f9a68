"""Data parallelism: gradients are averaged, and with ZeRO parameters gathered, over the ranks that hold copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.adapted import adapter_parameters, common_on_rank, is_frozen, routed_parameters, trained_parameters
from planner.cost.axes.groups import pipeline_stride, replica_seconds, seconds
from planner.cost.axes.pipeline import StageCounts, stage_span
from planner.cost.job import Jobs
from planner.cost.software_time import TimeRules
from planner.cost.unit_costs import Links
from profiles.codecs.codec import GRADIENT_BYTES
from profiles.machines.devices import MICROSECOND
from profiles.machines.profile import Collective
from profiles.models.traced_sizes import TracedSizes, is_of_task
from profiles.models.transformer import Array, Flags
from profiles.units import MIB

# Bytes of a parameter whose owner sends it as it is.
OWNED_BYTES = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageParameters:
    """Parameters one rank trains on the fullest stage: every rank's copy, and its share of the routed experts."""

    common: Array
    expert: Array

    @property
    def total(self) -> Array:
        """Both."""
        return self.common + self.expert


def stage_parameters(jobs: Jobs, layers: StageCounts) -> StageParameters:
    """Parameters of the first stage (with the embedding), one in the midst or the last (with the head): the most."""
    model, num_places = jobs.model, len(next(iter(layers.values())))
    common, experts = ([np.zeros(len(jobs))] * num_places for _ in range(2))
    for kind, counts in layers.items():
        own, routed = trained_parameters(jobs, kind)
        common = [held + count * own for held, count in zip(common, counts, strict=True)]
        experts = [held + count * routed for held, count in zip(experts, counts, strict=True)]
    split, trains_ends = jobs.vocabulary_split, ~is_frozen(jobs)
    head = np.where(model.tied & (jobs.pipeline > 1), model.vocab_size * model.hidden_size, model.head_parameters)
    first, last = (np.where(trains_ends, own / split, 0.0) for own in (model.embedding_parameters, head))
    common[0] = common[0] + first + np.where(jobs.pipeline > 1, 0.0, last)
    common[-1] = common[-1] + np.where(jobs.pipeline > 1, last, 0.0)
    most = jobs.expert * jobs.expert_tensor
    return StageParameters(common=np.max(common, axis=0), expert=np.max(experts, axis=0) / most)


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


def gradient_message_bytes(jobs: Jobs, rules: TimeRules) -> Array:
    """Bytes of a gradient on the wire: the stack's, or as the run says. Shapes: one entry per job."""
    return np.where(jobs.gradient_bytes > 0, jobs.gradient_bytes, rules.gradient_message_bytes)


def expert_replicas(jobs: Jobs) -> Array:
    """Ranks that hold the same experts. Shapes: one entry per job."""
    return np.maximum(jobs.data * jobs.context * jobs.tensor / (jobs.expert * jobs.expert_tensor), 1.0)


def exchange(jobs: Jobs, rules: TimeRules, links: Links, held: StageParameters) -> Exchange:
    """The exchange of a whole step's gradients, for jobs whose parameters are not sharded (ZeRO stage below 3)."""
    replicas = jobs.data * jobs.context
    of_experts = expert_replicas(jobs)
    message_bytes = gradient_message_bytes(jobs, rules)
    per_gradient = message_bytes * jobs.gradient_wire_fraction
    groups = [(held.common, replicas, jobs.tensor), (held.expert, of_experts, jobs.expert * jobs.expert_tensor)]
    # Where few ranks share the states, updated weights go no further.
    in_groups = (jobs.zero_stage < 3) & (jobs.shard > 1)
    whole = np.isin(jobs.zero_stage, (0, 1)) & ((jobs.zero_stage == 0) | (rules.owners_send_weights > 0))

    def taken(collective: Collective, num_bytes: Array, split: bool = False) -> tuple[Array, Array]:
        """Seconds of all messages and of those behind the backward pass, of so many bytes per parameter.

        Of all ranks, where `split`. A task's experts are averaged then, which DDP has no part in.
        """
        total = last = np.zeros(len(jobs))
        for number, (parameters, size, stride) in enumerate(groups):
            count = num_messages(jobs, rules, parameters, whole)
            amount = parameters * num_bytes * (size if split else 1.0) / np.maximum(count, 1.0)
            ranks = np.where(in_groups, np.minimum(size, jobs.shard), size) if collective == "all_gather" else size
            one = replica_seconds(jobs, links, collective, amount, ranks, stride) * (count > 0)
            total, last = total + count * one, last + (count * one if number and is_of_task(jobs.model) else one)
        return total, last

    reduced, tail = taken("all_reduce", per_gradient)
    gathered_fraction = message_bytes * jobs.gradient_gather_fraction
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
    """Summing the gradients of a tied embedding over the first and last stage, which both hold it.

    Those of other weights that stages of a task's module share are summed over all of them.
    """
    model = jobs.model
    num_bytes = model.vocab_size * model.hidden_size / jobs.vocabulary_split * gradient_message_bytes(jobs, rules)
    pair = np.where(model.tied & (jobs.pipeline > 1) & ~is_frozen(jobs), 2.0, 1.0)
    if isinstance(model, TracedSizes) and model.profile.cutting.shared:
        num_bytes, pair = _shared_parameters(jobs, model) * GRADIENT_BYTES, jobs.pipeline
    return seconds(jobs, links, "all_reduce", num_bytes, pair, pipeline_stride(jobs))


def _shared_parameters(jobs: Jobs, model: TracedSizes) -> Array:
    """Parameters that several stages hold, as the stage has it that holds most beside those of its layers."""
    most = np.zeros(len(jobs))
    for stage in range(1, int(jobs.pipeline.max(initial=1))):
        before, layers = stage_span(jobs, np.minimum(float(stage), jobs.pipeline - 1))
        most = np.maximum(most, model.shared_parameters(before, before + layers))
    return most


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """Seconds, alone, of gathering one unit's parameters and of scattering its gradients: a layer, and the rest.

    Of a layer by its kind. `layer_again`: whether layers that are recomputed are gathered twice in a backward pass.
    `_gathered` and `_scattered` are bytes of what is whole on one rank, `_trained` its parameters that have gradients.
    """

    layer_gather: dict[str, Array]
    layer_scatter: dict[str, Array]
    layer_again: dict[str, Flags]
    root_gather: Array
    root_scatter: Array
    layer_gathered: dict[str, Array]
    layer_scattered: dict[str, Array]
    root_gathered: Array
    root_scattered: Array
    layer_trained: dict[str, Array]
    root_trained: Array


def expert_shard(jobs: Jobs) -> Array:
    """Ranks that what one of them has of the experts is sharded over with ZeRO stage 3. Shapes: one entry per job.

    Model: experts are split over their own ranks first, which lie inside those of the shards; these hold the rest.
    """
    return np.maximum(jobs.shard * jobs.tensor / (jobs.expert * jobs.expert_tensor), 1.0)


def sharded(jobs: Jobs, rules: TimeRules, links: Links) -> Sharded:
    """What ZeRO stage 3 sends per micro-batch; replicas of the shards (HSDP) average on top. 0 for other stages."""
    model = jobs.model
    root = (model.embedding_parameters + model.head_parameters) / jobs.vocabulary_split
    active, of_experts = jobs.zero_stage == 3, jobs.expert * jobs.expert_tensor
    size, expert_size = np.where(active, jobs.shard, 1.0), np.where(active, expert_shard(jobs), 1.0)
    replicas = np.where(active, np.maximum(jobs.data * jobs.context / jobs.shard, 1.0), 1.0)
    copies = np.where(active, np.maximum(expert_replicas(jobs) / expert_shard(jobs), 1.0), 1.0)
    common_group, expert_group = (size, replicas, jobs.tensor), (expert_size, copies, of_experts)

    def sent(collective: Collective, unit: _Unit, group: tuple[Array, Array, Array]) -> Array:
        """Seconds of the messages that a unit is, and what each costs for every rank."""
        num_bytes = unit.gathered if collective == "all_gather" else unit.scattered
        ranks, others, stride = group
        count = np.where(rules.gathers_tensors > 0, unit.tensors, 1.0)
        amount = num_bytes / np.maximum(count, 1.0)
        one = replica_seconds(jobs, links, collective, amount, ranks, stride)
        one = one + np.where(ranks > 1, rules.shard_rank_us * MICROSECOND * ranks, 0.0)
        if collective == "reduce_scatter":
            one = one + replica_seconds(jobs, links, "all_reduce", amount / ranks, others, stride * ranks)
        return np.where(num_bytes > 0, count * one, 0.0)

    def each(collective: Collective) -> dict[str, Array]:
        return {
            kind: sent(collective, one, common_group) + sent(collective, own, expert_group)
            for kind, (one, own) in units.items()
        }

    def together(name: str) -> dict[str, Array]:
        pairs = {kind: (getattr(one, name), getattr(own, name)) for kind, (one, own) in units.items()}
        return {kind: one + own * (expert_size > 1) for kind, (one, own) in pairs.items()}

    units = {kind: _units(jobs, rules, kind) for kind in model.kinds}
    most = np.where(rules.reuse_parameters > 0, rules.reuse_parameters, np.inf)
    ends = _unit(jobs, rules, root, np.where(model.tied, 1.0, 2.0), is_base=False)
    return Sharded(
        layer_gather=each("all_gather"),
        layer_scatter=each("reduce_scatter"),
        layer_again={kind: parameters > most for kind, parameters in together("parameters").items()},
        root_gather=sent("all_gather", ends, common_group),
        root_scatter=sent("reduce_scatter", ends, common_group),
        layer_gathered=together("gathered"),
        layer_scattered=together("scattered"),
        root_gathered=ends.gathered,
        root_scattered=ends.scattered,
        layer_trained=together("trained"),
        root_trained=ends.trained,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """Parameters on one rank that are sharded over the same ranks, and in how many matrices; those that are trained.

    `gathered` and `scattered` are bytes of weights and of gradients.
    """

    parameters: Array
    trained: Array
    tensors: Array
    gathered: Array
    scattered: Array


def _unit(
    jobs: Jobs, rules: TimeRules, parameters: Array, tensors: Array, beside: Array | float = 0.0, is_base: bool = True
) -> _Unit:
    """A unit of so many parameters, with adapters of so many `beside` them; `is_base`: frozen ones may be in few bits.

    Model: bits of a frozen base are sent as they are stored; frozen weights have no gradients.
    """
    wide, narrow = rules.parameter_message_bytes, jobs.adapters.read(lambda one: one.base_bytes)
    of_base = np.where(is_base & (narrow > 0), narrow, wide)
    gradient_bytes = gradient_message_bytes(jobs, rules) * jobs.gradient_wire_fraction
    trained = np.where(is_frozen(jobs), beside, parameters)
    return _Unit(
        parameters=parameters,
        trained=trained,
        tensors=tensors,
        gathered=parameters * of_base + beside * wide,
        scattered=trained * gradient_bytes,
    )


def _units(jobs: Jobs, rules: TimeRules, kind: str) -> tuple[_Unit, _Unit]:
    """What one rank works with of a layer by the ranks that it is sharded over: all of them, or those of experts.

    Experts that are not split are sharded as all else is, in the same message.
    """
    model, of_experts = jobs.model, jobs.expert * jobs.expert_tensor
    experts = routed_parameters(jobs, kind)
    matrices = model.num_matrices(kind)
    of_each = np.where(experts > 0, model.num_experts / jobs.expert * np.where(model.gated, 3.0, 2.0), 0.0)
    held, together = experts / of_experts, of_experts == jobs.tensor
    common, beside = common_on_rank(jobs, kind), adapter_parameters(jobs, kind)
    held_here, more = np.where(together, held, 0.0), np.where(together, of_each, 0.0)
    one = _unit(jobs, rules, common + held_here, matrices + more, beside)
    return one, _unit(jobs, rules, np.where(together, 0.0, held), of_each)
