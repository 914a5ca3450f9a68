"""One plan as a step for the event simulation: what each stage computes and sends, on streams that share links.

Messages enter as bytes that take their predicted seconds on a link that nothing shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.cost.axes.pipeline import chunks_in_rounds, round_length
from planner.cost.layers import SHARDED, Pass, exposed, often_of
from planner.cost.once import codec_seconds, num_exchanges, offload_seconds, optimizer_parameters, optimizer_seconds
from planner.plans import Plan
from planner.schedules.registry import has
from planner.simulate.step_work import Bucket, Span, StageWork, StepWork, Transfer
from planner.space.block import straggling
from planner.space.explore import Place, Space
from planner.space.stage_passes import (
    StageLayers,
    StagePasses,
    beside_and_waited,
    shape_of,
    stage_layers,
    stage_passes,
)
from planner.space.to_plans import plan_of
from profiles.models.transformer import Array

# Streams of a pass and what a transfer on them is called.
SENT: dict[str, tuple[str, Callable[[Pass], Array]]] = {
    "tensor": ("all_reduce", lambda one: one.tensor_comm),
    "context": ("all_to_all", lambda one: one.context_comm),
    "expert": ("all_to_all", lambda one: one.expert_comm),
}


def step_work(space: Space, place: Place) -> StepWork:
    """The plan at `place` as a step.

    Model: as planner/cost/step has it, but for what the simulation plays itself: gathers beside passes, gradients
    beside the last backward, messages on their links, and the pipeline.
    """
    plan, passes = plan_of(space, place), stage_passes(space, [place])
    priced = _Priced(
        space=space,
        plan=plan,
        passes=passes,
        layers=stage_layers(plan, space.at.model.transformer),
        recomputed_share=float(space.choices(place.layout).share[place.recompute]),
    )
    ranks, factors = plan.pipeline_parallel, space.learned.factors
    gather = _parameters(priced)
    return StepWork(
        shape=shape_of(plan),
        stages=_stages(priced),
        node_bytes_per_second=space.at.fast_bytes_per_second,
        network_bytes_per_second=space.at.network_bytes_per_second,
        optimizer_seconds=(_once(priced),) * ranks,
        after_optimizer=(gather,) * ranks if gather else (),
        rank_slowdown=((straggling(space.tables),) * ranks,),
        compute_slowdown_fraction=factors.compute_slowdown,
        communication_slowdown_fraction=factors.comm_slowdown,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Priced:
    """A plan with its passes, which are priced and have a single row."""

    space: Space
    plan: Plan
    passes: StagePasses
    layers: StageLayers
    recomputed_share: float

    def transfer(self, name: str, axis: str, seconds: float) -> Transfer | None:
        """A message that takes so long along an axis; None where there is none."""
        if seconds <= 0:
            return None
        at = self.space.at
        reach: Span = "node" if _extent(self.plan, axis) <= at.fast_domain else "network"
        rate = at.fast_bytes_per_second if reach == "node" else at.network_bytes_per_second
        return Transfer(name=name, stream=axis, span=reach, num_bytes=seconds * rate)


def _extent(plan: Plan, axis: str) -> int:
    """Over how many neighbouring devices a group of an axis reaches."""
    if axis == "expert":
        axis = "data"
    inner = plan.axis_order[: plan.axis_order.index(axis)]
    stride = int(np.prod([plan.degree(name) for name in inner], initial=1))
    # A message of the pipeline goes to the next stage only.
    return stride * (min(plan.degree(axis), 2) if axis == "pipeline" else plan.degree(axis))


def _stages(priced: _Priced) -> tuple[StageWork, ...]:
    passes, layers, plan = priced.passes, priced.layers, priced.plan
    is_sharded = plan.zero_stage == SHARDED
    ahead, back = (
        {axis: find(layers, 0, part) for axis, (_, part) in SENT.items()} for find in (passes.forward, passes.backward)
    )
    slower, sent = beside_and_waited(priced.space, plan, passes)
    forward = passes.forward(layers, 0, _on_device) + slower
    backward = passes.backward(layers, 0, _on_device) + _sent_beside(priced) + slower
    weights = passes.weights(layers, 0)
    gathers = [
        priced.transfer("all_gather", "data", seconds) if is_sharded else None for seconds in _gathered_by_pass(priced)
    ]
    messages = np.broadcast_to(sent, len(plan.stage_bounds))
    pieces = sum(layers.count.values(), np.zeros(1))
    return tuple(
        StageWork(
            forward_seconds=float(forward[stage]),
            backward_seconds=float(backward[stage]),
            weight_seconds=float(min(weights[stage], backward[stage])),
            forward_comm=_waited(priced, {axis: float(values[stage]) for axis, values in ahead.items()}),
            backward_comm=_waited(priced, {axis: float(values[stage]) for axis, values in back.items()}),
            message=priced.transfer("send_receive", "pipeline", float(messages[stage])),
            gather=gathers[stage],
            num_pieces=max(1, int(pieces[stage])),
            buckets=_buckets(priced, int(pieces[stage])),
        )
        for stage in range(len(plan.stage_bounds))
    )


def _on_device(one: Pass) -> Array:
    return one.compute + one.recompute + one.host


def _whole(one: Pass) -> Array:
    return one.total


def _waited(priced: _Priced, seconds: dict[str, float]) -> Transfer | None:
    """What a pass sends and waits for: of several axes on the stream of the one that takes longest."""
    axis = max(seconds, key=lambda name: seconds[name])
    return priced.transfer(SENT[axis][0], axis, sum(seconds.values()))


def _gathered(priced: _Priced, kind: str) -> Array:
    """Seconds, alone, of gathering the weights of one layer of a kind. Shapes: (1,)."""
    return priced.passes.ingredients.sharded.layer_gather[kind][:1] * priced.space.learned.factors.data_comm


def _gathered_by_pass(priced: _Priced) -> Array:
    """Seconds, alone, of gathering a layer's weights in one pass, as a mean over both. Shapes: (stage,)."""
    layers = priced.layers.count
    made = priced.passes.ingredients
    often = often_of(made)
    ahead = often.gathered[:1] + often.returned[:1]
    again = {kind: flags[:1] * priced.recomputed_share for kind, flags in made.sharded.layer_again.items()}
    whole = sum(count * _gathered(priced, kind) * (ahead + again[kind]) for kind, count in layers.items())
    return np.asarray(whole / np.maximum(sum(layers.values()), 1.0) / 2)


def _sent_beside(priced: _Priced) -> Array:
    """Seconds per backward that gradients add which are not sent as buckets once a step, by stage.

    ZeRO 3 scatters each layer's while the next one's weights are gathered, which the simulation plays; ZeRO 2 those of
    all micro-batches but the last, whose are the buckets.
    """
    ingredients, factors, count = priced.passes.ingredients, priced.space.learned.factors, priced.plan.num_microbatches
    if priced.plan.zero_stage != SHARDED:
        each = ingredients.rules.reduces_every_microbatch > 0
        often = (
            float(num_exchanges(ingredients.jobs.zero_stage, each, ingredients.jobs.num_microbatches)[0]) - 1
        ) / count
        passing = priced.passes.backward(priced.layers, 0, _whole)
        seconds = exposed(
            ingredients.exchange.gradients * factors.data_comm, passing * priced.plan.virtual_stages, factors
        )
        return np.asarray(seconds * often / priced.plan.virtual_stages)
    every = often_of(ingredients).scattered[:1]
    # The embedding's gathering and scattering has nothing to hide behind.
    result = np.zeros(len(priced.plan.stage_bounds))
    result[0] = priced.passes.embedding.data_comm[0]
    for kind, layers in priced.layers.count.items():
        if kind in priced.passes.again:
            busy = _on_device(priced.passes.again[kind])[:1]
            gather = _gathered(priced, kind) * often_of(ingredients).returned[:1]
            both = gather + ingredients.sharded.layer_scatter[kind][:1] * factors.data_comm * every
            result += layers * float((exposed(both, busy, factors) - exposed(gather, busy, factors))[0])
    return result


def _buckets(priced: _Priced, num_layers: int) -> tuple[Bucket, ...]:
    """Gradients of each layer, sent when its last backward is done; all of them at the end where nothing overlaps."""
    ingredients = priced.passes.ingredients
    seconds = float(ingredients.exchange.gradients[0]) * priced.space.learned.factors.data_comm
    count = max(1, num_layers) if ingredients.jobs.overlap_grad[0] else 1
    name = "all_reduce" if priced.plan.zero_stage == 0 else "reduce_scatter"
    # The chunks of a rank share what the rank sends.
    each = priced.transfer(name, "data", seconds / priced.plan.virtual_stages / count)
    return tuple(Bucket(done_fraction=(i + 1) / count, transfer=each) for i in range(count)) if each else ()


def _parameters(priced: _Priced) -> Transfer | None:
    """Gathering updated parameters, as often as the software does, as far as the first forward does not hide it."""
    ingredients, factors = priced.passes.ingredients, priced.space.learned.factors
    jobs = ingredients.jobs
    seconds = ingredients.exchange.parameters[:1] * factors.data_comm
    if ingredients.jobs.overlap_param[0]:
        passing = priced.passes.forward(priced.layers, 0, _whole).max(keepdims=True) * priced.plan.virtual_stages
        first, later = (
            exposed(seconds, passing * often, factors)
            for often in (1.0, round_length(jobs.pipeline, jobs.num_microbatches))
        )
        in_rounds = has(jobs.schedule, lambda each: each.counts.in_rounds)
        seconds = first - (first - later) * chunks_in_rounds(in_rounds, jobs.chunks)
    often = num_exchanges(jobs.zero_stage, ingredients.rules.gathers_every_microbatch > 0, jobs.num_microbatches)
    return priced.transfer("all_gather", "data", float((seconds * often)[0]))


def _once(priced: _Priced) -> float:
    """What no pass hides of gradients, the optimizer, what crosses the host link, and the host's work beside layers."""
    ingredients, factors = priced.passes.ingredients, priced.space.learned.factors
    updated = optimizer_parameters(ingredients)
    exchange = ingredients.exchange
    seconds = (
        np.maximum(exchange.late, -exchange.gradients) * factors.data_comm
        + codec_seconds(ingredients, factors)
        + optimizer_seconds(ingredients, factors, updated)
        + ingredients.rules.host_step_ms * 1e-3
    )
    return float((seconds + offload_seconds(ingredients, updated, priced.recomputed_share))[0])
