"""One given plan in the space of a question: priced by the same laws as the plans of its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np

from planner.cost.factors import load_learned
from planner.plans import AXES, Plan, recomputed_layers, stages_of
from planner.schedules.registry import NONE
from planner.space.best import Best
from planner.space.explore import Place, Space, tables_of
from planner.space.layouts import Layouts, Options, illegal_degrees
from planner.space.question import Setting
from planner.space.schedule_choices import METHODS, Variants
from planner.space.to_plans import DATA_OUTSIDE, plan_of
from profiles.errors import PlanError


def space_of(at: Setting, layouts: Layouts, options: Options | None = None) -> Space:
    """A space of these layouts alone, none of which is searched."""
    learned = at.learned or load_learned()
    nothing, numbers = np.zeros(0), np.zeros(0, dtype=np.int64)
    best = Best(
        layout=numbers, micro_batch=numbers, schedule=numbers, recompute=numbers, step_seconds=nothing,
        device_bytes=nothing,
    )  # fmt: skip
    return Space(
        at=at, options=options or Options(), learned=learned, layouts=layouts,
        tables=tables_of(at, layouts, learned), best=best, front=best, generated=0, accepted=0, rejected=Counter(),
        broken=Counter(), nearest=nothing, nearest_place=numbers,
    )  # fmt: skip


def place_of(at: Setting, plan: Plan) -> tuple[Space, Place, list[str]]:
    """A space of the plan's layout alone, its place there, and where it is priced as another that is near.

    Raises: PlanError for a plan that is not legal for the model, the devices or the batch.
    """
    if plan.num_devices != at.num_devices or plan.global_batch_size != at.global_batch_size:
        raise PlanError(
            f"plan {plan.id}: {plan.num_devices} devices and {plan.global_batch_size} samples a step, but "
            f"{at.num_devices} and {at.global_batch_size} are asked about"
        )
    degrees = plan.tensor_parallel, plan.context_parallel, plan.pipeline_parallel, plan.data_parallel
    reason = illegal_degrees(at, *degrees)
    if reason:
        raise PlanError(f"plan {plan.id}: {reason}")
    schedules = (plan.schedule,) if plan.schedule != NONE else ()
    short = -at.model.num_layers % plan.pipeline_parallel
    for missing in (short, 0) if short else (0,):
        options = Options(schedules=schedules, short_pipelines=bool(at.stack.runs and at.stack.runs.short_pipelines))
        own = space_of(at, _layout(plan, missing), options)
        choices = own.choices(0)
        place = Place(0, _micro_batch(choices, plan), _schedule(choices, plan), _recompute(choices, plan))
        if plan_of(own, place).stage_bounds == plan.stage_bounds:
            break
    else:
        own = replace(own, placed={place: plan.stage_bounds})
    if not choices.legal[place.micro_batch, place.schedule, place.recompute]:
        raise PlanError(f"plan {plan.id}: {plan.rules.counts.others}")
    return own, place, list(_otherwise(plan, plan_of(own, place), at.model.transformer.num_positions))


def _layout(plan: Plan, missing: int) -> Layouts:
    """The plan's layout, of whose pipeline the first and the last stage miss so many layers together."""
    replicas = plan.data_parallel * plan.context_parallel
    row = {
        "tensor": plan.tensor_parallel,
        "sequence_parallel": plan.sequence_parallel,
        "vocab_parallel": plan.vocab_parallel,
        "context": plan.context_parallel,
        "expert": plan.expert_parallel,
        "pipeline": plan.pipeline_parallel,
        "data": plan.data_parallel,
        "zero_stage": plan.zero_stage,
        "shard": (plan.shard_degree or replicas) if plan.zero_stage == 3 else 1,
        "optimizer_offload": plan.offload == "optimizer",
        "activation_offload": plan.offload == "activations",
        "data_outside": _order(plan) == _order(replace(plan, axis_order=DATA_OUTSIDE)) != _order(_usual(plan)),
        "first_fewer": missing // 2,
        "last_fewer": missing - missing // 2,
    }
    return Layouts(**{each.name: np.array([int(row[each.name])]) for each in fields(Layouts)})


def _order(plan: Plan) -> tuple[str, ...]:
    """The axes that have more than one rank, innermost first."""
    return tuple(axis for axis in plan.axis_order if plan.degree(axis) > 1)


def _usual(plan: Plan) -> Plan:
    return replace(plan, axis_order=AXES)


def _micro_batch(choices: Variants, plan: Plan) -> int:
    return int(np.abs(choices.micro_batch - plan.micro_batch_size).argmin())


def _schedule(choices: Variants, plan: Plan) -> int:
    for number, (name, chunks) in enumerate(zip(choices.schedules, choices.chunks, strict=True)):
        if (name, chunks) == (plan.schedule, plan.virtual_stages):
            return number
    raise PlanError(
        f"plan {plan.id}: {plan.virtual_stages} virtual stages on each of {plan.pipeline_parallel} ranks do not divide "
        "the layers of a rank evenly"
    )


def _recompute(choices: Variants, plan: Plan) -> int:
    """The nearest number of recomputed layers of the same method."""
    same = np.flatnonzero(choices.method == METHODS.index(plan.recompute))
    if not len(same):
        raise PlanError(f"plan {plan.id}: this model has no recomputation '{plan.recompute}'")
    if not plan.recompute_layers:
        return int(same[-1])
    fullest = max(
        sum(plan.recompute_layers[stage] for stage in stages_of(plan, rank)) for rank in range(plan.pipeline_parallel)
    )
    return int(same[np.abs(choices.layers[same] - fullest).argmin()])


def _otherwise(plan: Plan, priced: Plan, num_layers: int) -> Iterator[str]:
    """What of the plan is priced as something near."""
    if _order(plan) != _order(priced):
        yield f"axes in the order {'-'.join(_order(plan))}, priced as {'-'.join(_order(priced))}"
    if plan.micro_batch_size != priced.micro_batch_size:
        yield f"micro-batches of {plan.micro_batch_size}, priced as {priced.micro_batch_size}"
    own, other = (
        [len(recomputed_layers(each, stage, num_layers)) for stage in range(plan.num_stages)] for each in (plan, priced)
    )
    if own != other:
        yield f"recomputed layers by stage {own}, priced as {other}"
