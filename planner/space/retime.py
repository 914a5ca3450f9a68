"""Plans timed again by exact replay of their schedules, stage by stage: what the closed form leaves out.

The closed form knows three stages and the textbooks' bubbles. Here every stage has the layers that the plan gives it,
forward and backward apart, and messages delay only what waits for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.executable import LOOPED_SCHEDULES
from planner.jobs.ingredients import ingredients_of
from planner.jobs.passes import edge_pass, layer_pass, weight_seconds
from planner.jobs.step import END_SHARE, KINDS
from planner.orders import STAGES_OF_V, Shape, round_length
from planner.plan import Plan
from planner.replay import PipelineSeconds, replay_plans
from planner.schedules import stage_ranks
from planner.space.block import block, pipelined_seconds, straggling
from planner.space.explore import Best, Space
from planner.space.plans import Place, best_places, jobs_at, plan_of
from planner.space.tables import taught
from planner.space.variants import HIDES_MESSAGES
from profiles.transformer import Array

# How many of the best plans are timed again; passes of all stages that are replayed one by one.
MOST_PLANS, MOST_PASSES = 200, 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Retimed:
    """Seconds of a plan's pipeline by replay: in all, without messages, and busy on the slowest rank."""

    makespan_seconds: float
    silent_seconds: float
    busy_seconds: float


def shape_of(plan: Plan) -> Shape:
    """The plan's pipeline without its times."""
    return Shape(plan.schedule, plan.pipeline_parallel, plan.virtual_stages, plan.num_microbatches)


def retimed(space: Space, places: Sequence[Place]) -> dict[Place, Retimed]:
    """What replay says of the plans at `places` that have a pipeline; equal shapes are replayed together."""
    piped = [place for place in places if space.layouts.pipeline[place.layout] > 1]
    if not piped:
        return {}
    groups: dict[Shape, list[int]] = {}
    columns = stage_seconds(space, piped)
    for index, (shape, _) in enumerate(columns):
        groups.setdefault(shape, []).append(index)
    result = {}
    for shape, members in groups.items():
        seconds = _beside([columns[index][1] for index in members])
        without = replace(seconds, message=np.zeros_like(seconds.message))
        spans, silent = np.split(_makespans(shape, _beside([seconds, without])), 2)
        owns = np.arange(shape.num_ranks)[:, None] == stage_ranks(shape)
        busy = shape.num_microbatches * (owns @ (seconds.forward + seconds.backward)).max(axis=0)
        for column, index in enumerate(members):
            result[piped[index]] = Retimed(
                makespan_seconds=float(spans[column]),
                silent_seconds=float(silent[column]),
                busy_seconds=float(busy[column]),
            )
    return result


def stage_seconds(space: Space, places: Sequence[Place]) -> list[tuple[Shape, PipelineSeconds]]:
    """The shape of each plan's pipeline, and one micro-batch on its stages. Shapes: (stage, 1)."""
    plain, again = (_passes(space, places, method) for method in ("none", None))
    return [
        (shape_of(plan), _of_stages(space, plan, row, plain, again))
        for row, plan in enumerate(plan_of(space, place) for place in places)
    ]


def corrections(space: Space, places: Sequence[Place], found: Mapping[Place, Retimed] | None = None) -> Array:
    """Seconds to add to what the closed form says of the step of each plan. Shapes: (plan,)."""
    found = retimed(space, places) if found is None else found
    result = np.zeros(len(places))
    for row, place in enumerate(places):
        if place in found:
            own = block(space.tables, np.array([place.layout]), space.choices(place.layout))
            closed = pipelined_seconds(own)[0, place.micro_batch, place.schedule, place.recompute]
            result[row] = (found[place].makespan_seconds - float(closed)) * straggling(space.tables)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """Seconds of a layer by kind, of the ends, and of a message. Shapes: one entry per plan."""

    forward: dict[str, Array]
    backward: dict[str, Array]
    weight: dict[str, Array]
    embedding: Array
    head: Array
    message: Array


def _passes(space: Space, places: Sequence[Place], method: str | None) -> _Passes:
    made, factors = taught(ingredients_of(jobs_at(space, places, method)), space.learned), space.learned.factors
    model = space.at.model.transformer
    kinds = [kind for kind in KINDS if kind == "dense" or model.num_moe_layers[0] > 0]
    return _Passes(
        forward={kind: layer_pass(made, factors, "forward", kind).total for kind in kinds},
        backward={kind: layer_pass(made, factors, "backward", kind).total for kind in kinds},
        weight={kind: weight_seconds(made, factors, kind) for kind in kinds},
        embedding=edge_pass(made, factors, "embedding").total,
        head=edge_pass(made, factors, "head").total,
        message=made.message,
    )


def _of_stages(space: Space, plan: Plan, row: int, plain: _Passes, again: _Passes) -> PipelineSeconds:
    """One micro-batch on the stages of a plan, some of whose layers are recomputed."""
    num_stages, num_layers = len(plan.stage_bounds), space.at.model.num_layers
    bounds = np.array([*plan.stage_bounds[1:], num_layers + 1]) - 1
    counts = np.diff(bounds, prepend=0)
    recomputed = np.array(plan.recompute_layers or (counts if plan.recompute != "none" else np.zeros(num_stages)))
    model = space.at.model.transformer
    leading = num_layers - int(model.num_moe_layers[0])
    dense = np.diff(np.minimum(bounds, leading), prepend=0)
    forward, backward, weight = np.zeros((3, num_stages))
    for kind, own in (("dense", dense), ("moe", counts - dense)):
        if kind not in plain.forward:
            continue
        share = recomputed * own / np.maximum(counts, 1)
        forward += own * plain.forward[kind][row]
        backward += (own - share) * plain.backward[kind][row] + share * again.backward[kind][row]
        weight += own * plain.weight[kind][row]
    for stage, end in ((0, plain.embedding[row]), (-1, plain.head[row])):
        forward[stage] += end * END_SHARE
        backward[stage] += end * (1 - END_SHARE)
        weight[stage] += end * END_SHARE
    is_hidden = plan.schedule in HIDES_MESSAGES.get(space.at.stack, ())
    message = np.full(num_stages, 0.0 if is_hidden else plain.message[row])
    return PipelineSeconds(
        forward=forward[:, None], backward=backward[:, None], weight=weight[:, None], message=message[:, None]
    )


def _beside(columns: Sequence[PipelineSeconds]) -> PipelineSeconds:
    """Plans of one shape as columns of one table."""
    return PipelineSeconds(
        **{
            name: np.concatenate([getattr(own, name) for own in columns], axis=1)
            for name in ("forward", "backward", "weight", "message")
        }
    )


def _makespans(shape: Shape, seconds: PipelineSeconds) -> Array:
    """Seconds until the last rank is done. Shapes: (plan,).

    Model: a settled pipeline repeats itself, so that of very many micro-batches some are replayed, and some more, and
    the rest goes on at that pace.
    """
    period = _period(shape)
    few = period * (10 if shape.virtual_stages <= STAGES_OF_V else 5) + shape.num_microbatches % period
    if shape.num_stages * shape.num_microbatches <= MOST_PASSES or shape.num_microbatches <= few + period:
        return replay_plans(shape, seconds).step_seconds
    first, second = (
        replay_plans(replace(shape, num_microbatches=count), seconds).step_seconds for count in (few, few + period)
    )
    return np.asarray(first + (second - first) * (shape.num_microbatches - few) / period)


def _period(shape: Shape) -> int:
    """Micro-batches after which what the ranks do is the same again."""
    return round_length(shape) if shape.schedule in LOOPED_SCHEDULES else shape.num_ranks


def in_order(space: Space, count: int = MOST_PLANS) -> Space:
    """The space with its `count` best plans timed again and ranked anew; the others follow as they were."""
    best = space.best
    places = best_places(space, min(count, len(best)))
    corrected = corrections(space, places)
    seconds = best.step_seconds.copy()
    seconds[: len(places)] += corrected
    order = np.arange(len(best))
    order[: len(places)] = np.argsort(seconds[: len(places)], kind="stable")
    columns = {name: getattr(best, name)[order] for name in Best.__slots__ if name != "step_seconds"}
    return replace(space, best=Best(step_seconds=seconds[order], **columns))
