"""What one rank of a plan computes and sends in a step, in FLOPs and bytes: what a rehearsal or a run can be held to.

Bytes are of the tensors that a collective works on: the whole sum, what is gathered, scattered or exchanged. The rules
are those of the executor's engines: DTensor, DDP, FSDP2 and torch.distributed.pipelining.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.plans import Plan, axis_of_all, recomputed_layers, stages_of
from planner.schedules.registry import rank_steps
from planner.schedules.steps import Shape
from profiles.artifacts import STRICT
from profiles.codecs.codec import codec
from profiles.inputs.ranges import Amount
from profiles.models.layer_profile import LayerProfile
from profiles.models.operators import Polynomial, evaluate
from profiles.models.profile import MIXED, SCALED, ModelProfile

# Bytes of an element; INT64 tells another rank how many rows to expect for each expert.
FULL, HALF, INT64 = 4.0, 2.0, 8.0
# Sums over the vocabulary's ranks in a loss over split columns: the largest logit, the exponentials, the target's.
LOSS_MESSAGES = 3
Sent = Iterator[tuple[str, str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes of one collective on one axis in a step."""

    __pydantic_config__ = STRICT

    axis: str
    collective: str
    num_bytes: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """A step of one rank: FLOPs of products, with what is recomputed, and bytes by axis and collective."""

    __pydantic_config__ = STRICT

    flops: Amount
    traffic: tuple[Traffic, ...]


def volumes(plan: Plan, model: ModelProfile, sequence_length: int, pipeline_rank: int) -> Volumes:
    """What the ranks at one place of the pipeline do in a step.

    Ignores: what FSDP adds to a parameter that has fewer rows than there are shards.
    """
    own = RankCounts(plan, model, sequence_length, pipeline_rank)
    sent: dict[tuple[str, str], float] = {}
    for axis, collective, num_bytes in own.messages():
        if num_bytes:
            sent[axis, collective] = sent.get((axis, collective), 0.0) + num_bytes
    traffic = (Traffic(axis=axis, collective=name, num_bytes=size) for (axis, name), size in sorted(sent.items()))
    return Volumes(flops=own.flops(), traffic=tuple(traffic))


class RankCounts:
    """One place of the pipeline, and what a rank there has."""

    def __init__(self, plan: Plan, model: ModelProfile, sequence_length: int, place: int) -> None:
        self.plan, self.model, self.sequence, self.place = plan, model, sequence_length, place
        self.layers = list(model.each_layer(plan.precision))
        bounds = (*plan.stage_bounds, len(self.layers))
        self.stages = stages_of(plan, place)
        self.positions_by_stage = [range(bounds[stage], bounds[stage + 1]) for stage in self.stages]
        self.positions = [position for positions in self.positions_by_stage for position in positions]
        self.again = {at for stage in self.stages for at in recomputed_layers(plan, stage, len(self.layers))}
        self.count, self.replicas = plan.num_microbatches, plan.data_parallel * plan.context_parallel
        self.low = HALF if plan.precision in MIXED else FULL
        # Of embeddings, and of gradients of norms: 16 bits where weights are gathered in them.
        self.weight = self.low if plan.zero_stage >= 2 else FULL

    def at(self, polynomial: Polynomial, degree: int | None = None) -> float:
        """The value for one micro-batch and the plan's tensor degree."""
        degree = self.plan.tensor_parallel if degree is None else degree
        return float(evaluate(polynomial, self.plan.micro_batch_size, self.sequence, degree))

    def flops(self) -> float:
        """FLOPs of a step. A recomputed layer stops before its last product, which nothing saved depends on."""
        result = 0.0
        for position in self.positions:
            layer = self.layers[position]
            one = self.at(layer.flops("forward")) + self.at(layer.flops("backward"))
            one += self._recomputed(layer) if position in self.again else 0.0
            result += one / self._split(position)
        return result * self.count / self.plan.context_parallel

    def _recomputed(self, layer: LayerProfile) -> float:
        products = layer.of_phase("forward")
        if self.plan.recompute == "selective":
            return sum(self.at(op.flops) for op in products if op.kind == "attention")
        # What an expert gave is needed for the gradient of its weight.
        last = [] if layer.num_expert_parameters else [op for op in products if op.kind == "matmul"][-1:]
        # torchao keeps a linear's input and weight when it is done.
        return self.at(layer.flops("forward")) - sum(self.at(op.flops) for op in last if op.dtype != "fp8")

    def _split(self, position: int) -> int:
        """Ranks over which the ends of the model are split beside what every layer says of itself."""
        is_end = position in (0, len(self.layers) - 1)
        return self.plan.tensor_parallel if is_end and self.plan.vocab_parallel else 1

    def messages(self) -> Sent:
        """Everything that is sent in a step."""
        if self.plan.tensor_parallel > 1:
            yield from self._tensor()
            yield from () if self.model.workload.task else self._norms()
        if self.plan.context_parallel > 1:
            yield from self._context()
        if self.plan.expert_parallel > 1:
            yield from self._experts()
        if self.replicas > 1:
            yield from self._data()
        if self.plan.pipeline_parallel > 1:
            yield from self._pipeline()
        yield axis_of_all(self.plan), "all_reduce", FULL * (self.plan.precision == SCALED and self.plan.num_devices > 1)

    @cached_property
    def hidden(self) -> float:
        """Elements of the hidden states of one micro-batch on a context rank."""
        tokens = self.plan.micro_batch_size * self.sequence / self.plan.context_parallel
        return tokens * self.model.hidden_size

    def _tensor(self) -> Sent:
        """Per block a sum behind each row-wise linear, and of the gradient before each column-wise one.

        With the sequence split a sum is scattered, and what was scattered gathered once for all linears that read it. A
        task's module sums what its trace says.
        """
        plan, count = self.plan, self.count
        for position in self.positions:
            layer = self.layers[position]
            if self.model.workload.task:
                yield "tensor", "all_reduce", self.at(layer.summed_bytes(position in self.again)) * count
                continue
            forward = sum(message.phase == "forward" for message in layer.messages)
            backward = len(layer.messages) - forward
            # A recomputed layer stops before its last sum.
            again = int(position in self.again and plan.recompute == "full")
            if not plan.sequence_parallel:
                yield "tensor", "all_reduce", (forward + again * (forward - 1)) * self.low * self.hidden * count
                yield "tensor", "all_reduce", backward * self.low * self.hidden * count
            elif forward:
                yield "tensor", "reduce_scatter", (forward + again * (forward - 1)) * self.low * self.hidden * count
                yield "tensor", "all_gather", forward * (1 + again) * self.low * self.hidden * count
                yield "tensor", "reduce_scatter", forward * self.low * self.hidden * count
                yield "tensor", "all_gather", forward * self.low * self.hidden * count
        if 0 in self.positions:
            yield from self._embedding()
        if len(self.layers) - 1 in self.positions:
            yield from self._head()

    def _embedding(self) -> Sent:
        plan, elements = self.plan, self.hidden * self.count
        # Learned positions are added to the whole sequence before it is cut.
        cut_at_once = plan.sequence_parallel and plan.vocab_parallel and not self._has_learned_positions
        if plan.vocab_parallel:
            yield "tensor", "reduce_scatter" if cut_at_once else "all_reduce", self.weight * elements
        if plan.sequence_parallel:
            yield "tensor", "all_gather", (self.weight if cut_at_once else self.low) * elements

    def _head(self) -> Sent:
        plan, whole = self.plan, self.low * self.hidden * self.count
        if plan.sequence_parallel:
            yield "tensor", "all_gather", whole
        if plan.vocab_parallel:
            yield "tensor", "reduce_scatter" if plan.sequence_parallel else "all_reduce", whole
            yield "tensor", "all_reduce", LOSS_MESSAGES * FULL * self.hidden / self.model.hidden_size * self.count

    def _norms(self) -> Sent:
        """Gradients of norms, of which every tensor rank saw some tokens, or some heads; those of tasks are ignored."""
        # DDP and FSDP want whole gradients after every backward pass; a pipeline gives them to FSDP once, summed up.
        plan = self.plan
        keeps_sums = plan.pipeline_parallel > 1 and (plan.zero_stage >= 2 or plan.rules.splits_backward)
        often = 1 if self.replicas == 1 or keeps_sums else self.count
        width = FULL if keeps_sums else self.weight
        for position in self.positions:
            yield "tensor", "all_reduce", self._norm_parameters(position) * width * often

    def _norm_parameters(self, position: int) -> float:
        hidden = self.model.hidden_size
        is_last, is_first = position == len(self.layers) - 1, position == 0
        each = 2.0 if self._has_learned_positions else 1.0
        norms = 0.0 if is_first else 1.0 if is_last else 2.0
        own = norms * each * hidden if self.plan.sequence_parallel else 0.0
        if self.model.workload.config.get("model_type") == "qwen3" and not (is_first or is_last):
            own += 2 * self._head_size
        return own

    @property
    def _has_learned_positions(self) -> bool:
        return self.model.workload.config.get("model_type") == "gpt2"

    @property
    def _head_size(self) -> float:
        return float(self.model.workload.config.get("head_dim") or self.model.hidden_size / self.model.num_heads)

    def _context(self) -> Sent:
        """Queries, keys, values and what attention gives are exchanged, in every direction."""
        plan = self.plan
        heads = 2 * (self.model.num_heads + self.model.num_kv_heads)
        tokens = plan.micro_batch_size * self.sequence / plan.context_parallel
        one = tokens * heads / plan.tensor_parallel * self._head_size * self.low
        for position in self.positions:
            if 0 < position < len(self.layers) - 1:
                ways = 2 + (position in self.again and plan.recompute == "full")
                yield "context", "all_to_all", ways * one * self.count

    def _experts(self) -> Sent:
        """Rows go to the ranks of the experts chosen for them and come back, in every direction; so do their counts."""
        plan = self.plan
        rows = self.hidden * self.model.experts_per_token
        for position in self.positions:
            if self.layers[position].num_expert_parameters:
                again = position in self.again and plan.recompute == "full"
                yield "expert", "all_to_all", 2 * (2 + again) * rows * self.low * self.count
                yield "expert", "all_to_all", (1 + again) * self.model.num_experts * INT64 * self.count
        if plan.data_parallel > plan.expert_parallel:
            yield "data", "all_reduce", self._shared_out() / plan.expert_parallel * FULL

    def _shared_out(self) -> float:
        """Parameters of experts that ranks share out; DDP averages those of others alone."""
        if self.plan.expert_parallel == 1:
            return 0.0
        return sum(self.at(self.layers[position].num_expert_parameters) for position in self.positions)

    def _data(self) -> Sent:
        plan = self.plan
        frozen = sum(self.at(self.layers[position].num_frozen_parameters) for position in self.positions)
        held = sum(self.parameters(position) for position in self.positions) - frozen - self._shared_out()
        if plan.zero_stage < 2:
            sides, vectors = (
                sum(self.at(getattr(self.layers[position], name)) for position in self.positions)
                for name in ("matrix_sides", "num_vector_parameters")
            )
            used = codec(plan.codec)
            received = plan.data_parallel * plan.context_parallel if used.gathered else 1
            yield "data", used.collective, received * float(np.asarray(used.wire_bytes(held, sides, vectors)))
            if plan.zero_stage == 1:
                yield "data", "broadcast", held * FULL
            return
        rounds = 1 if plan.pipeline_parallel > 1 else self.count
        reduced = held * codec(plan.codec).wire_bytes_per_parameter * rounds
        yield "data", "reduce_scatter", reduced
        if plan.shard_degree:
            yield "data", "all_reduce", reduced / plan.shard_degree
        for stage in self.stages:
            bounds = (*plan.stage_bounds, len(self.layers))
            own = sum(self.parameters(position) for position in range(bounds[stage], bounds[stage + 1]))
            yield "data", "all_gather", own * self.low * self._gathers(stage)

    def _gathers(self, stage: int) -> int:
        """How often a stage's parameters are gathered in a step.

        With stage 2 once; with 3 for every forward, after which they are sharded again, and for every backward, after
        which a pipeline keeps them for what follows.
        """
        plan = self.plan
        if plan.zero_stage == 2:
            return 1
        if plan.pipeline_parallel == 1:
            return 2 * self.count
        shape = Shape(plan.schedule, plan.pipeline_parallel, plan.virtual_stages, self.count)
        times, gathered = 0, False
        for step in rank_steps(shape, self.place):
            if step.stage == stage:
                times += not gathered
                gathered = step.action != "F"
        return times

    def parameters(self, position: int) -> float:
        """Parameters of a layer, split as its plan says but for experts."""
        layer = self.layers[position]
        return self.at(layer.num_parameters) if self._split(position) == 1 else self._split_end(layer, position)

    def _split_end(self, layer: LayerProfile, position: int) -> float:
        """Parameters of an end of the model whose vocabulary is split: norms and positions are not."""
        whole, vocabulary = self.at(layer.num_parameters), float(self.model.vocab_size * self.model.hidden_size)
        return whole - vocabulary + vocabulary / self._split(position)

    def _pipeline(self) -> Sent:
        """Hidden states go to the next stage and their gradients come back, where that is another rank."""
        plan, cuts = self.plan, self.model.cutting
        hidden = self.hidden / (plan.tensor_parallel if plan.sequence_parallel else 1) * self.low
        for stage, other in ((stage, stage + step) for stage in self.stages for step in (-1, 1)):
            if 0 <= other < plan.num_stages and other not in self.stages:
                start = plan.stage_bounds[max(stage, other)]
                own = self.at(cuts.received_at(start, plan.precision)) if cuts.positions else hidden
                yield "pipeline", "send", own * self.count
                yield "pipeline", "receive", own * self.count
