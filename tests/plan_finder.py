"""The place of a given plan in a space, whatever stage bounds it has."""

from dataclasses import replace

import numpy as np

from planner.plans import Plan
from planner.prediction import Prediction
from planner.space.explore import Place, Space
from planner.space.predictions import predictions
from planner.space.to_plans import plan_of

DEGREES = {
    "data": "data_parallel", "tensor": "tensor_parallel", "pipeline": "pipeline_parallel",
    "context": "context_parallel", "expert": "expert_parallel", "zero_stage": "zero_stage",
}  # fmt: skip


def find(space: Space, plan: Plan) -> tuple[Space, Place]:
    """The space, with the plan's stage bounds where they are not those of its layout, and where the plan is in it."""
    same = np.ones(len(space.layouts), dtype=bool)
    for name, degree in DEGREES.items():
        same &= getattr(space.layouts, name) == getattr(plan, degree)
    for layout in np.flatnonzero(same):
        choices = space.choices(int(layout))
        micro = np.flatnonzero(choices.micro_batch == plan.micro_batch_size)
        for schedule in range(len(choices.schedules)):
            for recompute in range(len(choices.share)):
                place = Place(int(layout), int(micro[0]), schedule, recompute)
                own = plan_of(space, place)
                if replace(own, stage_bounds=plan.stage_bounds) == plan:
                    placed = {} if own.stage_bounds == plan.stage_bounds else {place: plan.stage_bounds}
                    return replace(space, placed={**space.placed, **placed}), place
    raise AssertionError(f"{plan.id} is not in the space")


def predict(space: Space, plan: Plan) -> Prediction:
    """What the plan would take."""
    own, place = find(space, plan)
    return predictions(own, [place])[0]
