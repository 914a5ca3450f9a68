"""Seconds of forward passes alone: of a micro-batch through a model, of one sample, in 8 bits, and of rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.compression.recipes import FULL_BYTES
from planner.compression.smaller_settings import FULL_PRECISION, by_kernels, stored
from planner.cost.factors import Learned, load_learned
from planner.cost.hardware import memory_rate
from planner.cost.ingredients import ingredients_of
from planner.cost.job import Jobs
from planner.cost.layers import SHARDED, edge_pass, layer_pass
from planner.cost.measured.operators import find_curve
from planner.cost.software_time import rules_of
from planner.cost.step import END_SHARE
from planner.plans import Plan
from planner.space.question import Setting, jobs_of
from planner.space.weights import Weights
from profiles.laws.curves import kernel_seconds
from profiles.machines.devices import MICROSECOND
from profiles.models.operators import PHASES

ENDS = ("embedding", "head")
# What rounding to int8 by plain operators reads and writes of a tensor, and how many kernels that is: the largest of
# each row, divided, rounded, multiplied, subtracted and added back.
ROUNDING_PASSES, ROUNDING_KERNELS = 15.0, 9


def learned_for(at: Setting) -> Learned:
    """What runs taught of a setting's hardware."""
    return at.learned or load_learned()


def one_sample(at: Setting) -> Jobs:
    """The setting's model on one device with one sample. Shapes: one job."""
    return jobs_of(at, tensor=np.ones(1), micro_batch=np.ones(1))


def job_of(at: Setting, plan: Plan) -> Jobs:
    """The setting's model as a plan without a pipeline places it. Shapes: one job."""
    shards = plan.shard_degree or plan.data_parallel
    return jobs_of(
        at,
        tensor=np.array([float(plan.tensor_parallel)]),
        data=np.array([float(plan.data_parallel)]),
        zero_stage=np.array([float(plan.zero_stage)]),
        shard=np.array([float(shards if plan.zero_stage == SHARDED else 1)]),
        micro_batch=np.array([float(plan.micro_batch_size)]),
        num_microbatches=np.array([float(plan.num_microbatches)]),
        sequence_parallel=np.array([plan.sequence_parallel]),
        vocabulary_split=np.array([float(plan.tensor_parallel if plan.vocab_parallel else 1)]),
    )


def forward_seconds(job: Jobs, learned: Learned) -> float:
    """One micro-batch's forward pass, with what its tensor-parallel ranks send and what waits for the host.

    Parameters are whole: what gathering them takes is not in it.
    Model: of embedding and head, END_SHARE of what both directions take, as in a step.
    """
    job = replace(job, zero_stage=np.zeros(1), shard=np.ones(1))
    made, factors, model = replace(ingredients_of(job), rules=rules_of(job, learned)), learned.factors, job.model
    layers = [model.num_of(kind) * layer_pass(made, factors, PHASES[0], kind).total for kind in model.kinds]
    ends = [END_SHARE * edge_pass(made, factors, name).total for name in ENDS]
    return float(sum(float(seconds[0]) for seconds in (*layers, *ends)))


def sample_seconds(at: Setting) -> float:
    """One forward pass of one sample in full precision: without a loss, as layers were timed; else as in training."""
    full = stored(at)
    traced = full.measured
    if traced is not None:
        timed = {
            timing.layer: timing.inference_seconds
            for timing in traced.machine.layer_timings
            if timing.workload == traced.layers.model.workload.digest
            and timing.precision == FULL_PRECISION
            and timing.sequence_length == full.sequence_length
            and timing.inference_seconds
        }
        layers = list(traced.layers.model.each_layer(FULL_PRECISION))
        if all(layer.name in timed for layer in layers):
            return sum(timed[layer.name] for layer in layers)
    return forward_seconds(one_sample(full), learned_for(full))


def scaled_seconds(whole: Setting, whole_seconds: float, left: Setting) -> float:
    """One forward pass of one sample through the model that is left, in full precision.

    Model: that of the whole model as its layers were timed, scaled by what kernels alone say of the two.
    """
    alone = [by_kernels(stored(at)) for at in (left, whole)]
    own, of_whole = (forward_seconds(one_sample(at), learned_for(at)) for at in alone)
    return whole_seconds * own / of_whole


def quantised_seconds(at: Setting, weights: Weights, scheme: str, seconds: float) -> float | None:
    """A forward pass of one sample with every linear in 8 bits; None where no machine was measured for it.

    Model: the pass of so many seconds, less its linears in fp32, plus the same in 8 bits, both linear by linear.
    """
    traced = at.measured
    curves = {curve.name: curve for curve in traced.machine.kernels if curve.kind == "linear"} if traced else {}
    if scheme not in curves or FULL_PRECISION not in curves:
        return None
    tokens = float(at.sequence_length)
    for count, inputs, outputs in weights.linears:
        dims = (tokens, inputs, outputs)
        flops, matrix = 2 * tokens * inputs * outputs, inputs * outputs
        full, low = (float(kernel_seconds(curves[name], flops, matrix, dims)) for name in (FULL_PRECISION, scheme))
        seconds += count * (low - full)
    return seconds


def why_unknown(at: Setting, scheme: str) -> str:
    """Why nothing is known of a latency in 8 bits."""
    if at.measured is None:
        return "no data sheet gives its latency: profile a machine to learn it"
    return f"its latency is unknown: the machine was not profiled for linears in {scheme}"


def rounding_seconds(at: Setting, weights: Weights, plan: Plan) -> float:
    """Rounding every linear's weights and input in the forward pass of each micro-batch; backward passes it by.

    Model: as measured; on a data sheet passes over memory. Ignores there: that the host launches every one of them.
    """
    tokens = float(plan.micro_batch_size * at.sequence_length)
    sizes = [
        size for count, inputs, outputs in weights.linears for size in [inputs * outputs, tokens * inputs] * int(count)
    ]
    num_bytes, traced = FULL_BYTES * np.array(sizes), at.measured
    if traced is not None:
        curve = find_curve(traced.machine, "memory", "rounding", FULL_PRECISION)
        seconds = kernel_seconds(curve, 0.0, num_bytes, [num_bytes])
    else:
        rate = memory_rate(one_sample(at)) * learned_for(at).factors.traffic_fraction
        latency = ROUNDING_KERNELS * at.device.kernel_latency_us * MICROSECOND
        seconds = ROUNDING_PASSES * num_bytes / rate + latency
    return float(seconds.sum()) * plan.num_microbatches
