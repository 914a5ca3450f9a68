"""Parameters of each pipeline stage on one rank, and the bytes of their weights, gradients and optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.job import Jobs
from planner.cost.memory.stage_content import StageContent
from planner.cost.software_memory import MemoryRules
from planner.cost.vocabulary import padded_vocabulary
from profiles.models.transformer import DENSE, ROUTED, Array, Flags

# Layers whose shards are together at once: the one at work and the one fetched ahead.
GATHERED_LAYERS = 2.0
# Chunks of a rank whose weights are gathered at once. Source: torch.distributed.pipelining, max_active_stages.
GATHERED_CHUNKS = 3.0
# Of a whole gradient that FSDP adds up until it is reduced: 32 bits, as the executor's reduce_dtype has it.
WHOLE_GRADIENT_BYTES = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KindParameters:
    """Parameters of a layer of one kind on one rank by what splits them. Shapes: one entry per job.

    `common` ones are sharded over data- and context-parallel ranks, routed `experts` over those that hold the same
    experts. `matrices` beside those of attention count every distinct shape of a weight once: one expert of many.
    """

    common: Array
    experts: Array
    matrices: Array

    @property
    def total(self) -> Array:
        """All parameters."""
        return self.common + self.experts


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParameters:
    """Parameters of one layer on one rank by kind, and of the ends of the model. Shapes: one entry per job."""

    kinds: dict[str, KindParameters]
    attention_matrices: Array
    vocabulary: Array
    positions: Array

    def take(self, index: NDArray[np.int64]) -> LayerParameters:
        """Those of some jobs."""
        kinds = {
            kind: KindParameters(common=own.common[index], experts=own.experts[index], matrices=own.matrices[index])
            for kind, own in self.kinds.items()
        }
        return LayerParameters(
            kinds=kinds,
            attention_matrices=self.attention_matrices[index],
            vocabulary=self.vocabulary[index],
            positions=self.positions[index],
        )


def layer_parameters(jobs: Jobs, rules: MemoryRules) -> LayerParameters:
    """Parameters of a rank's share of layers and vocabulary.

    Model: column- and row-split linears are divided by the tensor degree, the vocabulary by its own, norms, routers and
    latent projections are not, experts by expert · expert-tensor. Vocabularies are padded to what the stack asks for.
    """
    model = jobs.model
    split, whole = np.zeros(len(jobs)), np.zeros(len(jobs))
    for _, inputs, outputs, how in model.attention_linears:
        size = inputs * outputs + np.where(model.biases, outputs, 0.0)
        split = split + np.where(how != "whole", size, 0.0)
        whole = whole + np.where(how == "whole", size, 0.0)
    attention = split / jobs.tensor + whole
    ffn = model.feed_forward_parameters(model.ffn_size) / jobs.tensor
    shared = model.feed_forward_parameters(model.shared_ffn_size) / jobs.tensor
    router = model.num_experts * model.hidden_size
    one_expert = model.feed_forward_parameters(model.expert_ffn_size) / jobs.expert_tensor
    distinct = np.where(model.shared_ffn_size / jobs.tensor == model.expert_ffn_size / jobs.expert_tensor, 0.0, shared)
    vocabulary = padded_vocabulary(jobs)
    kinds = {
        DENSE: KindParameters(
            common=attention + ffn + model.norm_parameters, experts=np.zeros(len(jobs)), matrices=ffn
        ),
        ROUTED: KindParameters(
            common=np.where(model.is_moe, attention + shared + router + model.norm_parameters, 0.0),
            experts=one_expert * model.num_experts / jobs.expert,
            matrices=np.where(model.is_moe, distinct + one_expert, 0.0),
        ),
    }
    return LayerParameters(
        kinds={kind: kinds[kind] for kind in model.kinds},
        attention_matrices=attention,
        vocabulary=vocabulary * model.hidden_size / jobs.vocabulary_split,
        positions=model.learned_positions * model.hidden_size,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStates:
    """Bytes of a stage's states on one rank. Shapes: one entry per job.

    `gathered` is what sharded weights take while they are together, `at_forward`, `at_loss` and `at_head` at those
    moments (a pass forward has sharded all layers again, and the last one is fetched), `whole` what all of them would;
    `passing` are gradients of the layer at work until they are sharded or added up, `accumulated` whole gradients that
    a pipeline adds up before it shards them, and `reducing` those of a layer while it does (`of_chunks` says of all
    these what chunks change); `fresh` are gradients that are not there before the first backward pass; `step` what
    updating takes, `scratch` the weight gradients' scratch, `casts` the 16-bit copies of one micro-batch's layers,
    recomputed ones left out, and `head_casts` the head's.
    """

    parameters: Array
    gradients: Array
    optimizer: Array
    gathered: Array
    at_forward: Array
    at_loss: Array
    at_head: Array
    whole: Array
    passing: Array
    accumulated: Array
    reducing: Array
    fresh: Array
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
    common, experts = _parameters(jobs, layer, stage)
    of_layers = np.asarray(sum(count * layer.kinds[kind].total for kind, count in stage.layers.items()))
    group, expert_group = _shard_groups(jobs)

    def held(sharded: Flags) -> Array:
        return common / np.where(sharded, group, 1.0) + experts / np.where(sharded, expert_group, 1.0)

    updated = held(jobs.zero_stage >= 1)
    optimizer = updated * (rules.master_bytes + rules.moment_bytes)
    everything, is_sharded, is_alone = common + experts, _shards_weights(jobs, rules), jobs.data * jobs.context == 1
    head = np.where(stage.is_last & is_sharded & ~_stay_gathered(jobs), layer.vocabulary, 0.0)
    # Where whole gradients are added up, their shards are not there before the update.
    adds_up = rules.accumulates_whole & (jobs.pipeline > 1) & is_sharded
    gradients = held(jobs.zero_stage >= 2) * (rules.gradient_bytes + jobs.codec_state_bytes)
    # Gradients are whole from their product until they are reduced, at every ZeRO stage that shards them.
    one = np.minimum(_largest(layer, stage), everything)
    new = rules.gathered_gradient_bytes - np.where(adds_up, WHOLE_GRADIENT_BYTES, 0.0)
    passing = np.where(is_sharded, one * (new - _narrower_bytes(jobs)), 0.0)
    alone, fetched, gathered = (
        _weights_together(jobs, rules, layer, stage, count) for count in (0.0, 1.0, GATHERED_LAYERS)
    )
    present = [np.where(count > 0, layer.kinds[kind].matrices, 0.0) for kind, count in stage.layers.items()]
    matrices = np.asarray(sum(present)) + layer.attention_matrices
    return StageStates(
        parameters=held(is_sharded) * rules.weight_bytes,
        gradients=np.where(adds_up, 0.0, gradients) + jobs.codec_message_bytes * (1 + jobs.data * jobs.context),
        optimizer=np.where(jobs.optimizer_offload, 0.0, optimizer),
        gathered=gathered,
        at_forward=np.where(rules.frees_by_moment, gathered, gathered + passing),
        at_loss=np.where(rules.frees_by_moment, alone, gathered + passing),
        at_head=np.where(rules.frees_by_moment, fetched, gathered + passing),
        whole=np.where(adds_up, everything * rules.gathered_bytes, 0.0),
        passing=passing,
        accumulated=np.where(adds_up, everything * WHOLE_GRADIENT_BYTES, 0.0),
        # DDP's buckets hold them all the time.
        fresh=np.where(rules.frees_by_moment & (is_sharded | is_alone) & ~adds_up, gradients, 0.0),
        reducing=np.where(adds_up, one * WHOLE_GRADIENT_BYTES, 0.0),
        head_gathered=head * rules.gathered_bytes,
        step=np.where(jobs.optimizer_offload, 0.0, updated * rules.step_bytes) + np.where(adds_up, gradients, 0.0),
        scratch=matrices * rules.layer_gradient_bytes,
        casts=of_layers * rules.cast_bytes,
        head_casts=np.where(stage.is_last, layer.vocabulary, 0.0) * rules.cast_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Bytes of sharded weights and gradients that are whole: moment by moment of a pass, and at its end; as broadcast.

    `accumulated` are gradients that earlier passes left.
    """

    forward: Array
    loss: Array
    head: Array
    backward: Array
    ending: Array
    accumulated: Array


def of_chunks(states: StageStates, chunks: Array, opened: Array) -> Together:
    """What a rank of `chunks`, of which `opened` are under way, has whole. Shapes: broadcast.

    Model: a pipeline of single chunks keeps what a backward pass gathered for the next one; of several, torch gathers
    whole ones, and no more than three, and a chunk's gradients are sharded after its last backward pass.
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
            accumulated=accumulated * opened / chunks if np.any(accumulated) else accumulated,
        )
    weights = np.where(several, whole * np.minimum(GATHERED_CHUNKS / chunks, 1.0), states.gathered)
    late = np.where(several, weights + states.reducing, np.maximum(whole, weights) + passing)
    return Together(
        forward=np.where(several, weights, states.at_forward),
        loss=np.where(several, weights, states.at_loss),
        head=np.where(several, weights, states.at_head),
        backward=weights + passing,
        ending=late,
        accumulated=accumulated * opened / chunks,
    )


def _parameters(jobs: Jobs, layer: LayerParameters, stage: StageContent) -> tuple[Array, Array]:
    """Parameters of a rank of `stage`: those of all data-parallel ranks, and experts'."""
    model = jobs.model
    common = np.asarray(sum(count * layer.kinds[kind].common for kind, count in stage.layers.items()))
    experts = np.asarray(sum(count * layer.kinds[kind].experts for kind, count in stage.layers.items()))
    common = common + np.where(stage.is_first, layer.vocabulary + layer.positions, 0.0)
    own_head = stage.is_last & ~(model.tied & stage.is_first)
    norm = model.hidden_size * np.where(model.biases, 2.0, 1.0)
    common = common + np.where(own_head, layer.vocabulary, 0.0) + np.where(stage.is_last, norm, 0.0)
    return common, experts


def _narrower_bytes(jobs: Jobs) -> Array:
    """By how many bytes the gradients of a parameter are narrower as a codec of FSDP's own reduces them."""
    return np.asarray(WHOLE_GRADIENT_BYTES * (1 - jobs.gradient_wire_fraction) * (jobs.gradient_gather_fraction == 0))


def _shard_groups(jobs: Jobs) -> tuple[Array, Array]:
    """Ranks that states are sharded over, and experts' states."""
    group = jobs.sharing
    experts = np.maximum(group * jobs.tensor / (jobs.expert * jobs.expert_tensor), 1.0)
    return np.maximum(group, 1.0), experts


def _weights_together(
    jobs: Jobs, rules: MemoryRules, layer: LayerParameters, stage: StageContent, count: float
) -> Array:
    """Bytes of `count` layers' gathered weights; of all that the stage has where they stay so after forward."""
    everything = sum(_parameters(jobs, layer, stage))
    some = np.minimum(count * _largest(layer, stage), everything)
    weights = np.where(_stay_gathered(jobs), everything, some) * rules.gathered_bytes
    return np.where(_shards_weights(jobs, rules), weights, 0.0)


def _shards_weights(jobs: Jobs, rules: MemoryRules) -> Flags:
    return np.asarray(jobs.zero_stage >= rules.shards_weights_at)


def _stay_gathered(jobs: Jobs) -> Flags:
    return np.asarray(~jobs.reshard_after_forward | (jobs.zero_stage < 3))


def _largest(layer: LayerParameters, stage: StageContent) -> Array:
    """Parameters of the largest layer of a stage on one rank."""
    result = np.zeros(len(stage.index))
    for kind, count in stage.layers.items():
        result = np.maximum(result, np.where(count > 0, layer.kinds[kind].total, 0.0))
    return result
