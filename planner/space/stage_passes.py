"""What the stages of a plan do for one micro-batch: its layers by kind and recomputation, times what a layer takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.axes.pipeline import sent_seconds
from planner.cost.factors import Learned, expected
from planner.cost.ingredients import Ingredients, ingredients_of
from planner.cost.job import Jobs
from planner.cost.layers import Pass, edge_pass, layer_pass, slowing_share
from planner.cost.links import links_of
from planner.cost.software_time import rules_of
from planner.cost.step import END_SHARE
from planner.plans import Plan
from planner.schedules.registry import schedule_of
from planner.schedules.steps import Shape
from planner.space.explore import Place, Space
from planner.space.schedule_choices import hides_messages
from planner.space.tables import taught
from planner.space.to_plans import jobs_at
from profiles.machines.devices import MICROSECOND
from profiles.models.traced_sizes import TracedSizes
from profiles.models.transformer import Array, Transformer

# A part of a pass: its total, what it computes, what it sends.
Part = Callable[[Pass], Array]


def shape_of(plan: Plan) -> Shape:
    """The plan's pipeline without its times."""
    return Shape(schedule_of(plan.schedule).name, plan.pipeline_parallel, plan.virtual_stages, plan.num_microbatches)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLayers:
    """Layers of each stage by kind, and how many of them are recomputed. Shapes: (stage,)."""

    count: dict[str, Array]
    recomputed: dict[str, Array]


def layers_between(bounds: Sequence[int], model: Transformer) -> dict[str, Array]:
    """Layers of each stage by kind, by the first layer of every stage."""
    first = model.first_position
    ends = np.array([*bounds[1:], int(model.num_layers[0]) + first], dtype=float) - first
    return {kind: np.diff(model.num_before(kind, ends), prepend=0.0) for kind in model.kinds}


def shared_of(bounds: Sequence[int], model: Transformer) -> Array:
    """Parameters that each stage holds beside those of its layers."""
    first = model.first_position
    starts = np.array([0, *bounds[1:], int(model.num_layers[0]) + first], dtype=float) - first
    return model.shared_parameters(starts[:-1], starts[1:])


def stage_layers(plan: Plan, model: Transformer) -> StageLayers:
    """What the plan's stage bounds mean.

    Model: recomputed layers are of both kinds in the proportion in which the stage has them.
    """
    count = layers_between(plan.stage_bounds, model)
    whole = np.asarray(sum(count.values()))
    again = np.array(plan.recompute_layers or (whole if plan.recompute != "none" else 0 * whole))
    recomputed = {kind: layers * again / np.maximum(whole, 1) for kind, layers in count.items()}
    return StageLayers(count=count, recomputed=recomputed)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePasses:
    """A layer by kind, as a plan recomputes it and without, and the ends; all have a row per plan."""

    ingredients: Ingredients
    ahead: dict[str, Pass]
    again: dict[str, Pass]
    plain: dict[str, Pass]
    weight: dict[str, Array]
    embedding: Pass
    head: Pass

    def forward(self, layers: StageLayers, row: int, part: Part) -> Array:
        """Seconds of a part of the forward pass of plan `row`. Shapes: (stage,)."""
        result = sum((layers.count[kind] * part(own)[row] for kind, own in self.ahead.items()), np.zeros(1))
        return self._with_ends(np.asarray(result), row, part, END_SHARE) + self._action(row, part)

    def backward(self, layers: StageLayers, row: int, part: Part) -> Array:
        """Seconds of a part of the backward pass of plan `row`, with what it recomputes. Shapes: (stage,)."""
        result = np.zeros(1)
        for kind, own in self.again.items():
            again = layers.recomputed[kind]
            result = result + (layers.count[kind] - again) * part(self.plain[kind])[row] + again * part(own)[row]
        num_actions = 2 if schedule_of(str(self.ingredients.jobs.schedule[row])).splits_backward else 1
        return self._with_ends(result, row, part, 1 - END_SHARE) + num_actions * self._action(row, part)

    def weights(self, layers: StageLayers, row: int) -> Array:
        """Seconds of the weight gradients, a part of the backward pass. Shapes: (stage,)."""
        result = sum((layers.count[kind] * own[row] for kind, own in self.weight.items()), np.zeros(1))
        return self._with_ends(np.asarray(result), row, _total, END_SHARE) + self._action(row, _total)

    def _action(self, row: int, part: Part) -> float:
        """Seconds of a part of what the pipeline's runtime adds to a pass."""
        jobs, seconds = self.ingredients.jobs, self.ingredients.rules.pipeline_action_us[row] * MICROSECOND
        if jobs.pipeline[row] == 1 or not seconds:
            return 0.0
        none = dict.fromkeys(Pass.__slots__, np.zeros(1))
        return float(part(Pass(**(none | {"host": np.array([seconds])})))[0])

    def _with_ends(self, seconds: Array, row: int, part: Part, share: float) -> Array:
        result = seconds.copy()
        result[0] += part(self.embedding)[row] * share
        result[-1] += part(self.head)[row] * share
        return result


def _total(own: Pass) -> Array:
    return own.total


def stage_passes(space: Space, places: Sequence[Place]) -> StagePasses:
    """The passes of the plans at `places`."""
    return passes_of(jobs_at(space, places), space.learned)


def passes_of(jobs: Jobs, learned: Learned) -> StagePasses:
    """The passes of jobs."""
    factors, count = learned.factors, len(jobs)
    without = replace(jobs, recompute=np.full(count, "none"))
    ingredients, plain = (taught(ingredients_of(which), learned) for which in (jobs, without))
    ingredients = replace(ingredients, message=ingredients.message * factors.pipeline_comm)
    kinds = jobs.model.kinds
    return StagePasses(
        ingredients=ingredients,
        ahead={kind: layer_pass(ingredients, factors, "forward", kind) for kind in kinds},
        again={kind: layer_pass(ingredients, factors, "backward", kind) for kind in kinds},
        plain={kind: layer_pass(plain, factors, "backward", kind) for kind in kinds},
        weight={kind: ingredients.kernels.weights(ingredients.rules, factors, kind) for kind in kinds},
        embedding=edge_pass(ingredients, factors, "embedding"),
        head=edge_pass(ingredients, factors, "head"),
    )


def beside_and_waited(space: Space, plan: Plan, passes: StagePasses, row: int = 0) -> tuple[float, float | Array]:
    """Seconds by which a message to the next stage slows a pass that it is beside, and that the next stage waits.

    Shapes: one number, or the latter (stage,) where stages send more and less.
    """
    message = passes.ingredients.message[row]
    if hides_messages(space.at, plan.schedule):
        return float(message) * slowing_share(space.learned.factors), 0.0
    if plan.pipeline_parallel == 1 or space.at.model.transformer.can_cut_anywhere:
        return 0.0, float(message)
    return 0.0, stage_seconds_of_messages(space, plan, passes, row)


def stage_seconds_of_messages(space: Space, plan: Plan, passes: StagePasses, row: int) -> Array:
    """Seconds of what each stage sends to the next; nothing of the last. Shapes: (stage,)."""
    model = space.at.model.transformer
    assert isinstance(model, TracedSizes)
    jobs = passes.ingredients.jobs.take(np.full(plan.num_stages - 1, row))
    received = model.received_bytes(np.array(plan.stage_bounds[1:], dtype=float), jobs.micro_batch)
    seconds = sent_seconds(jobs, rules_of(jobs, expected()), links_of(jobs), received)
    return np.append(seconds * space.learned.factors.pipeline_comm, 0.0)
