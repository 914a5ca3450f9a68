"""Peak memory per device of training jobs from their configuration alone, in columns, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.cost.axes.pipeline import held_microbatches, message_bytes, open_chunks
from planner.cost.job import Jobs, Names
from planner.cost.memory.layer_parameters import LayerParameters, layer_parameters
from planner.cost.memory.peak import MOMENTS, PARTS, Peak, StageCosts, kept_together, peak_of
from planner.cost.memory.saved_tensors import LayerMemory, layer_memory
from planner.cost.memory.stage_content import StageContent, stage_content
from planner.cost.memory.stage_states import held_beside, stage_states
from planner.cost.memory.traced import traced_memory, traced_parameters, whole_beside
from planner.cost.software_memory import MemoryRules, memory_rules
from planner.schedules.registry import has
from profiles.models.traced_sizes import TracedSizes
from profiles.models.transformer import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of the fullest rank of every job. Shapes: one entry per job, in `stage_allocated_bytes` (job, stage).

    `parts` sum to `allocated_bytes`, what the allocator's peak counter shows; `reserved_bytes` is the most that the
    caching allocator of any rank holds; `device_bytes` adds context and communicators: what the driver shows,
    no more than the device has where all that is needed fits. `context_bytes` are those two. `offloaded_bytes` are
    activations of the stage that has most of them on the host. `stage` is the pipeline stage with the peak and `moment`
    when it comes; stages that a job does not have are nan.
    """

    parts: dict[str, Array]
    allocated_bytes: Array
    reserved_bytes: Array
    device_bytes: Array
    context_bytes: Array
    offloaded_bytes: Array
    stage: Array
    moment: Names
    stage_allocated_bytes: Array


def footprint(jobs: Jobs, contents: Callable[[StageMemory, int], StageContent] | None = None) -> Footprint:
    """Peak memory of `jobs` in bytes.

    Model: per stage, states plus the fullest of six moments (planner/cost/memory/peak).
    Ignores: unbalanced routing, fragmentation beyond the stack's slack, memory of the data loader.
    """
    shared = stage_memory(jobs)
    num_stages = int(jobs.pipeline.max(initial=1))
    by_stage = np.full((len(jobs), num_stages), np.nan)
    best = {name: np.full(len(jobs), -1.0) for name in PARTS}
    total, reserved, needed = (np.full(len(jobs), -1.0) for _ in range(3))
    offloaded = np.zeros(len(jobs))
    moment, where = np.zeros(len(jobs), dtype=np.int64), np.zeros(len(jobs))
    for index in range(num_stages):
        stage = contents(shared, index) if contents else stage_content(jobs, index)
        peak = shared.at(stage)
        held = peak.allocated_bytes
        by_stage[:, index] = np.where(stage.exists, held, np.nan)
        reserved = np.where(stage.exists, np.maximum(reserved, peak.reserved_bytes), reserved)
        needed = np.where(stage.exists, np.maximum(needed, peak.needed_bytes), needed)
        offloaded = np.where(stage.exists, np.maximum(offloaded, peak.offloaded_bytes), offloaded)
        is_fuller = stage.exists & (held > total)
        total, where = np.where(is_fuller, held, total), np.where(is_fuller, float(index), where)
        moment = np.where(is_fuller, peak.moment, moment)
        best = {name: np.where(is_fuller, peak.parts[name], best[name]) for name in PARTS}
    context = shared.rules.context_bytes
    # The allocator gives back what it does not use before it fails.
    reserved = np.minimum(reserved, np.maximum(needed, jobs.device_memory_bytes - context))
    return Footprint(
        parts=best,
        allocated_bytes=total,
        reserved_bytes=reserved,
        device_bytes=reserved + context,
        context_bytes=context,
        offloaded_bytes=offloaded,
        stage=where,
        moment=np.array(MOMENTS)[moment],
        stage_allocated_bytes=by_stage,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """The laws of memory asked about jobs once, for stages that hold whatever is said of them."""

    jobs: Jobs
    rules: MemoryRules
    parameters: LayerParameters
    layers: dict[str, LayerMemory]

    def at(self, stage: StageContent) -> Peak:
        """Peak memory in bytes of a stage that holds what `stage` says."""
        return peak_of(self._costs(stage))

    def _costs(self, stage: StageContent) -> StageCosts:
        jobs, rules = self.jobs, self.rules
        held, vocabulary = in_flight(jobs, stage.index), self.parameters.vocabulary
        kinds = [(count, self.layers[kind].kept, self._backward(kind)) for kind, count in stage.layers.items()]
        whole, largest, backward = kept_together(kinds)
        hidden, gathered = hidden_bytes(jobs, rules)
        num_logits = np.where(stage.is_last, jobs.tokens * vocabulary / jobs.model.hidden_size, 0.0)
        sent = np.where((jobs.pipeline > 1) & ~stage.is_last, hidden * rules.outputs_kept, 0.0)
        return StageCosts(
            states=stage_states(jobs, rules, self.parameters, stage),
            kept=whole + sent,
            largest=largest,
            backward=backward,
            in_flight=held,
            offloads=jobs.activation_offload,
            again=jobs.recompute_share
            * np.where(jobs.recompute == "partial", jobs.recompute_freed, jobs.recompute == "full"),
            hidden=hidden,
            gathered=gathered,
            num_logits=num_logits,
            loss_logit=loss_bytes(jobs, rules),
            head_logit=rules.head_logit_bytes,
            waiting_logit=rules.waiting_logit_bytes,
            num_waiting=np.where(has(jobs.schedule, lambda each: each.forwards_first), held - 1, 0.0),
            is_last=stage.is_last & (jobs.model.first_position > 0),
            head_gradient=np.where(stage.is_last, vocabulary, 0.0) * rules.head_gradient_bytes,
            embedding_gradient=np.where(stage.is_first, vocabulary, 0.0) * rules.head_gradient_bytes,
            num_microbatches=jobs.num_microbatches,
            chunks=jobs.chunks,
            opened=open_chunks(jobs.schedule, jobs.pipeline, jobs.chunks, jobs.per_pass),
            received=num_received(jobs, rules, stage) * jobs.num_microbatches * hidden,
            workspace=rules.workspace_bytes,
            buckets=np.where(jobs.data * jobs.context > 1, rules.bucket_bytes, 0.0),
            fixed_slack=fixed_slack_bytes(jobs, rules, self.parameters, stage),
            working_slack=rules.working_slack,
            idle=num_logits * rules.idle_logit_bytes,
        )

    def _backward(self, kind: str) -> Array:
        beside = whole_beside(self.jobs, self.rules, kind)
        return self.layers[kind].backward + (0.0 if beside is None else beside)


def stage_memory(jobs: Jobs) -> StageMemory:
    """What all stages of `jobs` share."""
    rules = memory_rules(jobs)
    layers = {kind: memory_of(jobs, rules, kind) for kind in jobs.model.kinds}
    return StageMemory(jobs=jobs, rules=rules, parameters=parameters_of(jobs, rules), layers=layers)


def memory_of(jobs: Jobs, rules: MemoryRules, kind: str) -> LayerMemory:
    """Bytes that a layer of a kind keeps: by the sizes of a transformer, or as it was traced."""
    if isinstance(jobs.model, TracedSizes):
        return traced_memory(jobs, rules, jobs.model, kind)
    return layer_memory(jobs, rules, kind)


def parameters_of(jobs: Jobs, rules: MemoryRules) -> LayerParameters:
    """Parameters of a rank's share of layers and vocabulary, the same way."""
    return traced_parameters(jobs, jobs.model) if isinstance(jobs.model, TracedSizes) else layer_parameters(jobs, rules)


def in_flight(jobs: Jobs, stage: int | Array) -> Array:
    """Micro-batches whose activations a stage holds at its fullest, in whole stages. Shapes: one entry per job."""
    held, count = np.ones(len(jobs)), jobs.per_pass
    place = np.broadcast_to(np.asarray(stage, dtype=np.float64), held.shape)
    for schedule in np.unique(jobs.schedule):
        own = held_microbatches(str(schedule), jobs.pipeline, jobs.chunks, count, place)
        held = np.where(jobs.schedule == schedule, own, held)
    return held


def fixed_slack_bytes(jobs: Jobs, rules: MemoryRules, parameters: LayerParameters, stage: StageContent) -> Array:
    """Bytes that the allocator holds and does not hand out, beside those that activations leave.

    Source: differences between reserved and allocated memory of published runs, fitted by stack.
    """
    logits = jobs.tokens * parameters.vocabulary / jobs.model.hidden_size * rules.element_bytes * stage.is_last
    return np.asarray(held_beside(jobs, rules, parameters, stage) + logits * rules.logit_slack)


def loss_bytes(jobs: Jobs, rules: MemoryRules) -> Array:
    """Bytes per logit of a rank in the loss."""
    return rules.loss_logit_bytes + np.where(jobs.vocabulary_split > 1, rules.split_logit_bytes, 0.0)


def num_received(jobs: Jobs, rules: MemoryRules, stage: StageContent) -> Array:
    """Messages that a stage has memory for, per micro-batch of a step: from both neighbours of each of its chunks.

    Where weight gradients wait, torch leaves the gradient of what came from the stage before with it.
    """
    chunks = np.maximum(jobs.chunks, 1.0)
    left = np.where(has(jobs.schedule, lambda each: each.waits), chunks - stage.is_first, 0.0)
    own = 2 * chunks - stage.is_first - stage.is_last + left
    return np.where(rules.receives_whole_step & (jobs.pipeline > 1), own, 0.0)


def hidden_bytes(jobs: Jobs, rules: MemoryRules) -> tuple[Array, Array]:
    """Bytes of the residual stream on one rank, and of what sequence parallelism gathers around the head.

    Of a task's module, of what comes to a stage.
    """
    whole = jobs.tokens * jobs.model.hidden_size * rules.element_bytes
    if not jobs.model.can_cut_anywhere:
        whole = np.where(jobs.pipeline > 1, message_bytes(jobs), whole)
    return (
        whole / np.where(jobs.sequence_parallel, jobs.tensor, 1.0),
        np.where(jobs.sequence_parallel, 2 * whole, 0.0),
    )
