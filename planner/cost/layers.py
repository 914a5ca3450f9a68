"""One layer, or an end of the model, in one direction: what a rank computes, sends visibly and waits for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.axes.context import exchanges_heads, hiding_share
from planner.cost.factors import Factors
from planner.cost.hardware import memory_rate
from planner.cost.ingredients import Ingredients
from planner.cost.unit_costs import LayerKernels
from profiles.models.operators import Phase
from profiles.models.transformer import Array, Flags

# Embedding and head together, which belong to no layer.
ROOT = "root"
# The ZeRO stage that shards weights, which each layer gathers when it needs them.
SHARDED = 3
# Host and device hide each other but where they take about as long: norm of this order in place of the maximum.
HOST_SHARPNESS = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Seconds of one piece of the model in one direction: what the device computes, sends visibly, and waits for."""

    compute: Array
    recompute: Array
    tensor_comm: Array
    context_comm: Array
    expert_comm: Array
    data_comm: Array
    host: Array

    @property
    def total(self) -> Array:
        """Seconds of all of it."""
        return (
            self.compute + self.recompute + self.tensor_comm + self.context_comm + self.expert_comm + self.data_comm
            + self.host
        )  # fmt: skip

    def __add__(self, other: Pass) -> Pass:
        return Pass(**{name: getattr(self, name) + getattr(other, name) for name in Pass.__slots__})

    def times(self, count: Array) -> Pass:
        """This pass `count` times."""
        return Pass(**{name: getattr(self, name) * count for name in Pass.__slots__})


def exposed(communication: Array, compute: Array, factors: Factors) -> Array:
    """Seconds that communication adds to compute beside which it runs, each slowing the other.

    Model: while both run, compute takes 1 + a and communication 1 + b times as long; what is left goes on alone.
    """
    a, b = factors.compute_slowdown, factors.comm_slowdown
    slow_comm, slow_compute = communication * (1 + b), compute * (1 + a)
    hidden = slow_comm * a / (1 + a)
    longer = communication + slow_compute * b / (1 + b) - compute
    return np.asarray(np.where(slow_comm <= slow_compute, hidden, np.maximum(longer, hidden)))


def slowing_share(factors: Factors) -> float:
    """What a second of a message adds to longer compute beside which it runs: `exposed` of the one over the other."""
    return (1 + factors.comm_slowdown) * factors.compute_slowdown / (1 + factors.compute_slowdown)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """Seconds of one layer in one direction before ZeRO's messages: on the device by part, and of its host.

    `launch` is host work that runs ahead of the device, `dispatch` such that nothing hides.
    """

    compute: Array
    recompute: Array
    tensor_comm: Array
    context_comm: Array
    expert_comm: Array
    launch: Array
    dispatch: Array

    @property
    def device(self) -> Array:
        """Seconds that the device is busy, or waits for what nothing hides."""
        busy = self.compute + self.recompute + self.tensor_comm + self.context_comm + self.expert_comm
        return np.asarray(busy + self.dispatch)


def layer_work(made: Ingredients, factors: Factors, phase: Phase, kind: str) -> LayerWork:
    """One layer in one direction, with what it recomputes and sends, but for what ZeRO stage 3 sends."""
    jobs, zero = made.jobs, np.zeros(len(made.jobs))
    kernels = made.kernels.layer(made.rules, factors, phase, kind)
    summed = _sums(made, phase, kind, kernels)
    sent = made.context_layer * factors.context_comm
    routed = made.expert_layers.get((kind, phase), zero) * factors.expert_comm
    repeated = jobs.repeated
    is_exchange = exchanges_heads(jobs)
    if phase == "backward":
        # Round the ranks go keys and values, and their gradients as well.
        sent = sent * (np.where(is_exchange, 1.0, 2.0) + repeated)
        again = repeated * jobs.model.can_recompute(kind)
        routed = routed + made.expert_layers.get((kind, "forward"), zero) * factors.expert_comm * again
        summed = summed + exposed(2 * made.gather_again, kernels.compute, factors)
        if np.any(made.rules.hides_input_gradients):
            summed = summed - _hidden_sums(made, factors, kind)
    hidden = np.where(jobs.overlap_tensor, made.rules.tensor_overlap, 0.0)
    return LayerWork(
        compute=kernels.compute,
        recompute=kernels.again,
        tensor_comm=summed * factors.tensor_comm * (1 - hidden),
        # Attention waits for heads that are exchanged.
        context_comm=np.where(is_exchange, sent, exposed(sent, kernels.attention * hiding_share(jobs), factors)),
        expert_comm=routed,
        # Ranks that sum partial results wait for the latest host.
        launch=kernels.launch + kernels.num_sums * factors.waiting_us * 1e-6 * np.log2(jobs.tensor),
        dispatch=kernels.dispatch,
    )


def _sums(made: Ingredients, phase: Phase, kind: str, kernels: LayerKernels) -> Array:
    """Seconds of a layer's sums over tensor-parallel ranks in one direction, those of what is recomputed included."""
    if not made.layer_sums:
        return np.asarray(kernels.num_sums * (made.half_layer + kernels.late))
    own, jobs = made.layer_sums[kind, phase], made.jobs
    if phase == "backward":
        again = (jobs.recompute == "full") & jobs.model.can_recompute(kind)
        own = own + np.where(again, made.layer_sums[kind, "forward"], 0.0)
    return np.asarray(own + kernels.num_sums * kernels.late)


def _hidden_sums(made: Ingredients, factors: Factors, kind: str) -> Array:
    """Seconds of a backward pass's sums that hide behind products, where the software sends them beside.

    Model: while ranks sum the gradient of what the linears split by columns read, those compute the gradient of their
    weights, half of all that a layer has. With the sequence split that is the scattering half of a sum.
    """
    sums = 2 * (made.half_layer - made.gather_again)
    beside = made.kernels.weights(made.rules, factors, kind) / 2
    return np.where(made.rules.hides_input_gradients > 0, sums - exposed(sums, beside, factors), 0.0)


def layer_pass(made: Ingredients, factors: Factors, phase: Phase, kind: str) -> Pass:
    """One layer in one direction, with everything that it sends."""
    work = layer_work(made, factors, phase, kind)
    jobs = made.jobs
    often, again = often_of(made), made.sharded.layer_again[kind] & (jobs.recompute == "full")
    message = sharded_message(
        phase,
        made.sharded.layer_gather[kind] * factors.data_comm,
        made.sharded.layer_scatter[kind] * factors.data_comm,
        often,
        again,
    )
    message = np.where(jobs.zero_stage == SHARDED, message, 0.0)
    copies = np.zeros(len(jobs))
    if copied := shard_copies(made, factors):
        copies = np.where(jobs.zero_stage == SHARDED, sharded_message(phase, *copied[kind], often, again), 0.0)
    data_comm, host = waits(work.device + copies, work.launch, message, made.rules.overlaps_shards > 0, factors)
    return Pass(
        compute=work.compute + copies,
        recompute=work.recompute,
        tensor_comm=work.tensor_comm,
        context_comm=work.context_comm,
        expert_comm=work.expert_comm,
        data_comm=data_comm,
        host=host + work.dispatch,
    )


def shard_copies(made: Ingredients, factors: Factors) -> dict[str, tuple[Array, Array]]:
    """Seconds of copying what is gathered out of a buffer, and what is reduced into one, by kind of layer and of ROOT.

    Of software that does so with sharded weights, else nothing. The device does it, and nothing hides it.
    """
    rules = made.rules
    if not np.any(rules.gather_copy_bytes + rules.scatter_copy_bytes):
        return {}
    rate = memory_rate(made.jobs) * factors.traffic_fraction
    rate = np.where(made.jobs.shard > 1, rate, np.inf)
    held = made.sharded
    gathered = held.layer_gathered | {ROOT: held.root_gathered}
    trained = held.layer_trained | {ROOT: held.root_trained}
    gather_copies, scatter_copies = rules.gather_copy_bytes / rules.parameter_message_bytes, rules.scatter_copy_bytes
    return {
        name: (num_bytes * gather_copies / rate, trained[name] * scatter_copies / rate)
        for name, num_bytes in gathered.items()
    }


def waits(busy: Array, launch: Array, message: Array, overlaps: Flags, factors: Factors) -> tuple[Array, Array]:
    """Seconds that a layer adds to those its device is busy: for sharded weights and gradients, and for its host."""
    visible = message
    if overlaps.any():
        visible = np.where(overlaps, exposed(message, busy, factors), message)
    return visible, host_excess(busy + visible, launch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Often:
    """For which share of a step's micro-batches sharded weights are gathered forward and back, gradients scattered."""

    gathered: Array
    returned: Array
    scattered: Array


def often_sharded(pipeline: Array, num_microbatches: Array, reshards: Flags, every: Flags, keeps: Flags) -> Often:
    """How often ZeRO stage 3 sends. Shapes: broadcast.

    Model: weights for every micro-batch, gradients where software reduces `every` one. A pipeline that `keeps` whole
    what a backward pass has gathered finds it there in what follows: weights are gathered once a step if they are not
    resharded, else before the first pass and behind every forward, n + 1 times, whatever the order of the passes. For
    as many micro-batches as there are ranks, what follows is a forward.
    """
    ahead, is_kept = np.minimum(pipeline, num_microbatches), keeps & (pipeline > 1)
    back = np.where(is_kept, (num_microbatches + 1 - ahead) / num_microbatches, 1.0)
    return Often(
        gathered=np.where(is_kept, np.where(reshards, ahead, 1.0) / num_microbatches, 1.0),
        returned=np.where(reshards, back, 0.0),
        scattered=np.where(every, 1.0, 1.0 / num_microbatches),
    )


def often_of(made: Ingredients) -> Often:
    """How often each job gathers and scatters shards. Shapes: one entry per job."""
    jobs, rules = made.jobs, made.rules
    every, keeps = rules.reduces_every_microbatch > 0, rules.keeps_in_pipeline > 0
    return often_sharded(jobs.pipeline, jobs.num_microbatches, jobs.reshard_after_forward, every, keeps)


def sharded_message(phase: Phase, gather: Array, scatter: Array, often: Often, again: Flags | bool = False) -> Array:
    """Seconds, alone, of what ZeRO stage 3 sends for one unit in one direction, per micro-batch. Shapes: broadcast.

    `again`: whether a unit that was gathered to be recomputed is gathered once more for its backward pass.
    """
    if phase == "forward":
        return np.asarray(gather * often.gathered)
    return np.asarray(gather * (often.returned + again) + scatter * often.scattered)


def host_excess(busy: Array, launch: Array) -> Array:
    """Seconds that a device waits for its host, which runs ahead of it: only the excess of its work shows."""
    return np.asarray((busy**HOST_SHARPNESS + launch**HOST_SHARPNESS) ** (1 / HOST_SHARPNESS) - busy)


def edge_pass(made: Ingredients, factors: Factors, part: str) -> Pass:
    """Embedding or head, both directions; tensor parallelism sums after the one and before the other."""
    zero = np.zeros(len(made.jobs))
    compute = made.kernels.end(made.rules, factors, part)
    is_split = (made.jobs.vocabulary_split > 1) | made.jobs.sequence_parallel
    comm = zero
    if part == "embedding":
        # The first gather and the last scatter have nothing to hide behind.
        often = often_of(made)
        root = made.sharded.root_gather * often.gathered + made.sharded.root_scatter * often.scattered
        is_sharded = made.jobs.zero_stage == SHARDED
        comm = np.where(is_sharded, root * factors.data_comm, 0.0)
        if copied := shard_copies(made, factors):
            gathered, scattered = copied[ROOT]
            compute = compute + np.where(is_sharded, gathered * often.gathered + scattered * often.scattered, 0.0)
    return Pass(
        compute=compute,
        recompute=zero,
        tensor_comm=np.where(is_split, made.half_layer, 0.0) * factors.tensor_comm,
        context_comm=zero,
        expert_comm=zero,
        data_comm=comm,
        host=zero,
    )
