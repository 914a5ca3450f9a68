"""One layer, or an end of the model, in one direction: what a rank computes, sends visibly and waits for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.cost.factors import Factors
from planner.cost.kernel_work import Load, Phase
from planner.cost.unit_costs import Ingredients
from profiles.models.transformer import ROUTED, Array, Flags

# The ZeRO stage that shards weights, which each layer gathers when it needs them.
SHARDED = 3
# A backward pass launches about as many kernels per product, and has twice the products.
BACKWARD_HOST = 1.5
# Host and device hide each other but where they take about as long: norm of this order in place of the maximum.
HOST_SHARPNESS = 12.0
# Seconds that the element-wise kernels of a layer take however little they move: some fifteen forward, at 4 us.
KERNELS_SECONDS: dict[Phase, float] = {"forward": 60e-6, "backward": 90e-6}


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


def _gpu(made: Ingredients, factors: Factors, load: Load) -> Array:
    """Seconds of a load's kernels."""
    rules = made.rules
    # Logits pass in forward and in backward: half of the stack's figure each.
    moved = load.activation_bytes * rules.element_passes + load.score_bytes * rules.score_passes
    moved = moved + load.copied_elements * rules.quantise_bytes
    moved = moved + load.logit_elements * rules.loss_bytes / 2
    attention = load.attention_seconds * factors.attention * rules.attention_slowdown
    products = load.matmul_seconds * factors.matmul + attention
    return products * rules.product_slowdown + moved / (made.memory_rate * factors.traffic_fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """Seconds of one layer in one direction before ZeRO's messages: on the device by part, and of its launches."""

    compute: Array
    recompute: Array
    tensor_comm: Array
    context_comm: Array
    expert_comm: Array
    launch: Array

    @property
    def device(self) -> Array:
        """Seconds that the device is busy."""
        return self.compute + self.recompute + self.tensor_comm + self.context_comm + self.expert_comm


def layer_work(made: Ingredients, factors: Factors, phase: Phase, kind: str) -> LayerWork:
    """One layer in one direction, with what it recomputes and sends, but for what ZeRO stage 3 sends."""
    jobs, zero = made.jobs, np.zeros(len(made.jobs))
    loads = made.work.layers[kind]
    compute = _gpu(made, factors, loads[phase]) + KERNELS_SECONDS[phase]
    again = zero
    summed = 2 * made.half_layer
    sent = made.context_layer * factors.context_comm
    routed = made.expert_layer * factors.expert_comm if kind == ROUTED else zero
    full = jobs.recompute == "full"
    if phase == "backward":
        compute = compute + _accumulate(made, factors, kind)
        core = _selective(made, factors, loads["forward"])
        again = np.where(
            full, _gpu(made, factors, loads["forward"]), np.where(jobs.recompute == "selective", core, 0.0)
        )
        sent = sent * np.where(full, 3.0, 2.0)
        routed = routed * np.where(full, 2.0, 1.0)
        summed = summed * np.where(full, 2.0, 1.0) + exposed(2 * made.gather_again, compute, factors)
    hidden = np.where(jobs.overlap_tensor, made.rules.tensor_overlap, 0.0)
    attention = loads[phase].attention_seconds * factors.attention * made.rules.attention_slowdown
    return LayerWork(
        compute=compute,
        recompute=again,
        tensor_comm=summed * factors.tensor_comm * (1 - hidden),
        context_comm=exposed(sent, attention * made.rules.product_slowdown, factors),
        expert_comm=routed,
        launch=_host(made, factors, phase),
    )


def layer_pass(made: Ingredients, factors: Factors, phase: Phase, kind: str) -> Pass:
    """One layer in one direction, with everything that it sends."""
    work = layer_work(made, factors, phase, kind)
    jobs = made.jobs
    message = sharded_message(
        phase,
        made.sharded.layer_gather * factors.data_comm,
        made.sharded.layer_scatter * factors.data_comm,
        jobs.reshard_after_forward,
        made.rules.reduces_every_microbatch > 0,
        jobs.num_microbatches,
    )
    message = np.where(jobs.zero_stage == SHARDED, message, 0.0)
    data_comm, host = waits(work.device, work.launch, message, factors)
    return Pass(
        compute=work.compute,
        recompute=work.recompute,
        tensor_comm=work.tensor_comm,
        context_comm=work.context_comm,
        expert_comm=work.expert_comm,
        data_comm=data_comm,
        host=host,
    )


def waits(busy: Array, launch: Array, message: Array, factors: Factors) -> tuple[Array, Array]:
    """Seconds that a layer adds to those its device is busy: for sharded weights and gradients, and for its host."""
    visible = exposed(message, busy, factors)
    return visible, host_excess(busy + visible, launch)


def sharded_message(
    phase: Phase, gather: Array, scatter: Array, reshards: Flags, reduces_every: Flags, num_microbatches: Array
) -> Array:
    """Seconds, alone, of what ZeRO stage 3 sends for one unit in one direction, per micro-batch. Shapes: broadcast."""
    if phase == "forward":
        return np.asarray(gather)
    share = np.where(reduces_every, 1.0, 1.0 / num_microbatches)
    return np.asarray(np.where(reshards, gather, 0.0) + scatter * share)


def weight_seconds(made: Ingredients, factors: Factors, kind: str) -> Array:
    """The part of a layer's backward that makes weight gradients: one of its two products each, and adding them up."""
    load = made.work.layers[kind]["backward"]
    products = load.matmul_seconds / 2 * factors.matmul * made.rules.product_slowdown
    return np.asarray(products + _accumulate(made, factors, kind))


def host_excess(busy: Array, launch: Array) -> Array:
    """Seconds that a device waits for its host, which runs ahead of it: only the excess of its work shows."""
    return np.asarray((busy**HOST_SHARPNESS + launch**HOST_SHARPNESS) ** (1 / HOST_SHARPNESS) - busy)


def _host(made: Ingredients, factors: Factors, phase: Phase) -> Array:
    """Host seconds to launch one layer in one direction; ranks that sum partial results wait for the latest host."""
    full = made.jobs.recompute == "full"
    passes = np.where(full, 1.0, 0.0) + BACKWARD_HOST if phase == "backward" else np.ones(len(made.jobs))
    messages = 2 * (1.0 + full) if phase == "backward" else 2.0
    launch = made.rules.host_layer_us * 1e-6 * factors.host * passes
    return np.asarray(launch + messages * factors.waiting_us * 1e-6 * np.log2(made.jobs.tensor))


def _selective(made: Ingredients, factors: Factors, forward: Load) -> Array:
    """What selective recomputation repeats: attention's core, or by operators everything but attention and the rest."""
    share = made.rules.selective_product_share
    zero = np.zeros_like(share)
    by_operator = replace(forward, matmul_seconds=forward.matmul_seconds * share, attention_seconds=zero)
    return np.where(share > 0, _gpu(made, factors, by_operator), _gpu(made, factors, made.work.core))


def _accumulate(made: Ingredients, factors: Factors, kind: str) -> Array:
    """Adding a layer's gradients to those of earlier micro-batches."""
    jobs, model = made.jobs, made.jobs.model
    common, experts = model.parameters_of(kind)
    held = common / jobs.tensor + experts / (jobs.expert * jobs.expert_tensor)
    return held * made.rules.accumulate_bytes / (made.memory_rate * factors.traffic_fraction)


def edge_pass(made: Ingredients, factors: Factors, part: str) -> Pass:
    """Embedding or head, both directions; tensor parallelism sums after the one and before the other."""
    zero = np.zeros(len(made.jobs))
    loads = made.work.embedding if part == "embedding" else made.work.head
    compute = _gpu(made, factors, loads["forward"]) + _gpu(made, factors, loads["backward"])
    comm = zero
    if part == "embedding":
        # The first gather and the last scatter have nothing to hide behind.
        root = made.sharded.root_gather + made.sharded.root_scatter
        comm = np.where(made.jobs.zero_stage == 3, root * factors.data_comm, 0.0)
    return Pass(
        compute=compute,
        recompute=zero,
        tensor_comm=made.half_layer * factors.tensor_comm,
        context_comm=zero,
        expert_comm=zero,
        data_comm=comm,
        host=zero,
    )
