"""Parameters of each pipeline stage on one rank, and the bytes of their weights, gradients and optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from planner.cost.adapted import is_frozen
from planner.cost.job import Jobs
from planner.cost.memory.layer_parameters import LayerParameters
from planner.cost.memory.stage_content import StageContent
from planner.cost.software_memory import NARROW_BYTES, MemoryRules
from profiles.models.traced_sizes import is_of_task
from profiles.models.transformer import Array, Flags

# Layers whose shards are together at once: the one at work and the one fetched ahead.
GATHERED_LAYERS = 2.0
# Chunks of a rank whose weights are gathered at once. Source: torch.distributed.pipelining, max_active_stages.
GATHERED_CHUNKS = 3.0
# Of a whole gradient that FSDP adds up until it is reduced: 32 bits, as the executor's reduce_dtype has it.
WHOLE_GRADIENT_BYTES = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStates:
    """Bytes of a stage's states on one rank. Shapes: one entry per job.

    `gathered` is what sharded weights take while they are together, `at_forward`, `at_loss` and `at_head` at those
    moments (a pass forward has sharded all layers again, and the last one is fetched), `at_end` when the last backward
    pass of a step has sharded all but the first ones again, `whole` what all of them would;
    `passing` are gradients of the layer at work until they are sharded or added up, `accumulated` whole gradients that
    a pipeline adds up before it shards them, and `reducing` those of a layer while it does (`of_chunks` says of all
    these what chunks change); `fresh` are gradients that are not there before the first backward pass, and `arriving`
    those of one layer where they come layer by layer (else infinite); `step` what updating takes, `scratch` the weight
    gradients' scratch, `casts` the 16-bit copies of one micro-batch's layers, recomputed ones left out, and
    `head_casts` the head's.
    """

    parameters: Array
    gradients: Array
    optimizer: Array
    gathered: Array
    at_forward: Array
    at_loss: Array
    at_head: Array
    at_end: Array
    whole: Array
    passing: Array
    accumulated: Array
    reducing: Array
    fresh: Array
    arriving: Array
    head_gathered: Array
    step: Array
    scratch: Array
    casts: Array
    head_casts: Array


def stage_states(jobs: Jobs, rules: MemoryRules, layer: LayerParameters, stage: StageContent) -> StageStates:
    """Bytes of weights, gradients and optimizer on a rank of `stage`.

    Model: ZeRO 1 shards master weights and moments over data · context ranks, 2 gradients too, 3 weights too; experts
    are sharded over the ranks that hold the same ones. Tied weights stand on the first and on the last stage.
    Source: Rajbhandari et al. 2020 (arXiv 1910.02054).
    """
    everything, (group, expert_group) = np.add(*_parameters(jobs, layer, stage)), _shard_groups(jobs)
    trained, weights = _trained(jobs, layer, stage), _weight_bytes(jobs, rules, layer, stage)

    def held(sharded: Flags, own: tuple[Array, Array]) -> Array:
        return own[0] / np.where(sharded, group, 1.0) + own[1] / np.where(sharded, expert_group, 1.0)

    updated = held(jobs.zero_stage >= 1, trained)
    is_sharded, is_alone = _shards_weights(jobs, rules), jobs.data * jobs.context == 1
    head = np.where(stage.is_last & is_sharded & ~_stay_gathered(jobs), layer.vocabulary, 0.0)
    # Where whole gradients are added up, their shards are not there before the update.
    adds_up = rules.accumulates_whole & (jobs.pipeline > 1) & is_sharded
    gradients = held(jobs.zero_stage >= 2, trained) * (rules.gradient_bytes + jobs.codec_state_bytes)
    # Gradients are whole from their product until they are reduced, at every ZeRO stage that shards them.
    one = _several(rules, layer, stage, everything, 1.0)
    new = rules.gathered_gradient_bytes - np.where(adds_up, WHOLE_GRADIENT_BYTES, 0.0)
    passing = np.where(is_sharded, one * (new - _narrower_bytes(jobs)), 0.0)
    alone, fetched, gathered = (
        _weights_together(jobs, rules, layer, stage, count) for count in (0.0, 1.0, GATHERED_LAYERS)
    )
    in_buckets = np.where(is_alone | is_sharded, 0.0, sum(trained) * rules.bucket_gradient_bytes)
    beside = in_buckets + jobs.codec_message_bytes * (1 + jobs.data * jobs.context)
    fresh, arriving = _late_gradients(jobs, rules, layer, trained[1])
    return StageStates(
        parameters=held(is_sharded, weights),
        gradients=np.where(adds_up, 0.0, gradients) + beside,
        optimizer=np.where(jobs.optimizer_offload, 0.0, updated * (rules.master_bytes + rules.moment_bytes)),
        gathered=gathered,
        at_forward=np.where(rules.frees_by_moment, gathered, gathered + passing),
        at_loss=np.where(rules.frees_by_moment, alone, gathered + passing),
        at_head=np.where(rules.frees_by_moment, fetched, gathered + passing),
        at_end=np.minimum(gathered, rules.gathered_bytes * _several(rules, layer, stage, everything, GATHERED_LAYERS)),
        whole=np.where(adds_up, everything * rules.gathered_bytes, 0.0),
        passing=passing,
        accumulated=np.where(adds_up, everything * WHOLE_GRADIENT_BYTES, 0.0),
        fresh=np.where(adds_up, 0.0, np.minimum(fresh, gradients)),
        arriving=arriving,
        reducing=np.where(adds_up, one * WHOLE_GRADIENT_BYTES, 0.0),
        head_gathered=head * rules.gathered_bytes,
        step=np.where(jobs.optimizer_offload, 0.0, updated * rules.step_bytes) + np.where(adds_up, gradients, 0.0),
        scratch=_matrices(layer, stage) * rules.layer_gradient_bytes,
        casts=sum(count * layer.kinds[kind].total for kind, count in stage.layers.items()) * rules.cast_bytes,
        head_casts=np.where(stage.is_last, layer.vocabulary, 0.0) * rules.cast_bytes,
    )


def held_beside(jobs: Jobs, rules: MemoryRules, layer: LayerParameters, stage: StageContent) -> Array:
    """Bytes that the allocator holds beside states and does not hand out, whatever the micro-batch.

    Model: the largest tensors leave the largest holes, those of the vocabulary; gradients that come and go others.
    Copies of gradients in 32 bits, for messages beside compute, are of a pool of their own, which is as large as those
    of the largest unit: an end of the model, where that is larger than the layers whose copies are counted.
    """
    ends = stage.is_first.astype(float) + stage.is_last
    vocabulary = layer.vocabulary * rules.element_bytes * ends * rules.vocabulary_slack
    wider = np.maximum(rules.gathered_gradient_bytes - NARROW_BYTES - _narrower_bytes(jobs), 0.0)
    is_apart = _shards_weights(jobs, rules) & ~rules.frees_by_moment & (ends > 0)
    more = np.where(is_apart, np.maximum(layer.vocabulary - _largest(layer, stage), 0.0), 0.0)
    return np.asarray(vocabulary + sum(_trained(jobs, layer, stage)) * rules.hole_bytes + more * wider)


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Bytes of sharded weights and gradients that are whole: moment by moment of a pass, and at its end; as broadcast.

    `last_ending` at the end of the last pass of a step. `accumulated` are gradients that earlier passes left.
    """

    forward: Array
    loss: Array
    head: Array
    backward: Array
    ending: Array
    last_ending: Array
    accumulated: Array


def of_chunks(states: StageStates, chunks: Array, opened: Array) -> Together:
    """What a rank of `chunks`, of which `opened` are under way, has whole. Shapes: broadcast.

    Model: a pipeline of single chunks keeps what a backward pass gathered for the next one; of several, torch gathers
    whole ones, and no more than three, and a chunk's gradients are sharded after its last backward pass. Without a
    pipeline the last backward pass of a step shards each layer again after it.
    """
    whole, passing, accumulated = states.whole, states.passing, states.accumulated
    several = (accumulated > 0) & (chunks > 1)
    if not np.any(several):
        return Together(
            forward=states.at_forward,
            loss=states.at_loss,
            head=states.at_head,
            backward=states.gathered + passing,
            ending=np.maximum(whole, states.gathered) + passing,
            last_ending=np.maximum(whole, states.at_end) + passing,
            accumulated=accumulated * opened / chunks if np.any(accumulated) else accumulated,
        )
    weights = np.where(several, whole * np.minimum(GATHERED_CHUNKS / chunks, 1.0), states.gathered)
    late = np.where(several, weights + states.reducing, np.maximum(whole, weights) + passing)
    latest = np.where(several, late, np.maximum(whole, states.at_end) + passing)
    return Together(
        forward=np.where(several, weights, states.at_forward),
        loss=np.where(several, weights, states.at_loss),
        head=np.where(several, weights, states.at_head),
        backward=weights + passing,
        ending=late,
        last_ending=latest,
        accumulated=accumulated * opened / chunks,
    )


def _parameters(jobs: Jobs, layer: LayerParameters, stage: StageContent) -> tuple[Array, Array]:
    """Parameters of a rank of `stage`: those of all data-parallel ranks, and experts'."""
    model = jobs.model
    common = np.asarray(sum(count * layer.kinds[kind].common for kind, count in stage.layers.items()))
    experts = np.asarray(sum(count * layer.kinds[kind].experts for kind, count in stage.layers.items()))
    common = common + np.where(stage.is_first, layer.vocabulary + layer.positions, 0.0)
    common = common + stage.shared
    own_head = stage.is_last & ~(model.tied & stage.is_first)
    # A task's last norm is among its layers.
    norm = np.where(is_of_task(model), 0.0, model.hidden_size * np.where(model.biases, 2.0, 1.0))
    common = common + np.where(own_head, layer.vocabulary, 0.0) + np.where(stage.is_last, norm, 0.0)
    return common, experts


def _trained(jobs: Jobs, layer: LayerParameters, stage: StageContent) -> tuple[Array, Array]:
    """Parameters that have gradients: all that a task trains, but where adapters are beside frozen ones these alone."""
    common, experts = _parameters(jobs, layer, stage)
    frozen = is_frozen(jobs)
    common = common - np.asarray(sum(count * layer.kinds[kind].frozen for kind, count in stage.layers.items()))
    if not np.any(frozen):
        return common, experts
    adapters = np.asarray(sum(count * layer.kinds[kind].adapters for kind, count in stage.layers.items()))
    return np.where(frozen, adapters, common), np.where(frozen, 0.0, experts)


def _weight_bytes(jobs: Jobs, rules: MemoryRules, layer: LayerParameters, stage: StageContent) -> tuple[Array, Array]:
    """Bytes of weights: what adapters leave as it is may be in few bits, the ends of the model are not."""
    common, experts = _parameters(jobs, layer, stage)
    if not np.any(is_frozen(jobs)):
        return common * rules.weight_bytes, experts * rules.weight_bytes
    inside = np.asarray(sum(count * layer.kinds[kind].common for kind, count in stage.layers.items()))
    adapters = np.where(is_frozen(jobs), _trained(jobs, layer, stage)[0] * rules.adapter_bytes, 0.0)
    return inside * rules.base_bytes + (common - inside) * rules.weight_bytes + adapters, experts * rules.base_bytes


def _narrower_bytes(jobs: Jobs) -> Array:
    """By how many bytes the gradients of a parameter are narrower as a codec of FSDP's own reduces them."""
    return np.asarray(WHOLE_GRADIENT_BYTES * (1 - jobs.gradient_wire_fraction) * (jobs.gradient_gather_fraction == 0))


def _most_live(rules: MemoryRules) -> Array:
    """Parameters that may be whole at once."""
    return np.where(rules.live_parameters > 0, rules.live_parameters, np.inf)


def _matrices(layer: LayerParameters, stage: StageContent) -> Array:
    """Weights of a layer, every distinct shape once."""
    present = [np.where(count > 0, layer.kinds[kind].matrices, 0.0) for kind, count in stage.layers.items()]
    return np.asarray(sum(present)) + layer.attention_matrices


def _shard_groups(jobs: Jobs) -> tuple[Array, Array]:
    """Ranks that states are sharded over, and experts' states."""
    group = jobs.sharing
    experts = np.maximum(group * jobs.tensor / (jobs.expert * jobs.expert_tensor), 1.0)
    return np.maximum(group, 1.0), experts


def _weights_together(
    jobs: Jobs, rules: MemoryRules, layer: LayerParameters, stage: StageContent, count: float
) -> Array:
    """Bytes of `count` layers' gathered weights; of all that the stage has where they stay so after forward."""
    everything = np.add(*_parameters(jobs, layer, stage))
    some = _several(rules, layer, stage, everything, count)
    weights = np.where(_stay_gathered(jobs), everything, some) * rules.gathered_bytes
    return np.where(_shards_weights(jobs, rules), weights, 0.0)


def _several(rules: MemoryRules, layer: LayerParameters, stage: StageContent, everything: Array, count: float) -> Array:
    """Parameters of `count` layers, at the most `everything` that the stage has."""
    return np.minimum(np.minimum(count * _largest(layer, stage), everything), _most_live(rules))


def _shards_weights(jobs: Jobs, rules: MemoryRules) -> Flags:
    return np.asarray(jobs.zero_stage >= rules.shards_weights_at)


def _stay_gathered(jobs: Jobs) -> Flags:
    return np.asarray(~jobs.reshard_after_forward | (jobs.zero_stage < 3))


def _late_gradients(jobs: Jobs, rules: MemoryRules, layer: LayerParameters, experts: Array) -> tuple[Array, Array]:
    """Bytes of gradients that are not there before a backward pass, at most, and of those of one layer of experts.

    Model: DDP's buckets hold them all the time, but where each has a copy there. Of a task's `experts` that ranks share
    DDP has none: each layer's come as its backward pass does.
    """
    is_sharded, is_alone = _shards_weights(jobs, rules), jobs.data * jobs.context == 1
    comes_late = (rules.frees_by_moment & (is_sharded | is_alone)) | rules.frees_gradients
    beside_ddp = experts * rules.gradient_bytes * is_of_task(jobs.model)
    most = reduce(np.maximum, (own.experts for own in layer.kinds.values()), np.zeros(len(jobs))) * rules.gradient_bytes
    return np.where(comes_late, np.inf, beside_ddp), np.where(~comes_late & (beside_ddp > 0), most, np.inf)


def _largest(layer: LayerParameters, stage: StageContent) -> Array:
    """Parameters of the largest layer of a stage on one rank."""
    result = np.zeros(len(stage.index))
    for kind, count in stage.layers.items():
        result = np.maximum(result, np.where(count > 0, layer.kinds[kind].total, 0.0))
    return result
