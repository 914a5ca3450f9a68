"""What the plans of a model would take on a measured machine, as `plan` says it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planner.plans import Plan
from planner.prediction import Candidate, PlanFile
from planner.space.explore import Space, explore
from planner.space.files import plan_file, planned_for
from planner.space.layouts import Options
from planner.space.measured_setting import measured_setting
from planner.space.predictions import predictions
from profiles.machines.profile import MachineProfile
from profiles.models.profile import ModelProfile
from tests.plan_finder import find

RANKS = 2
PRECISION = "fp32"
# Plans by what they are called, and their ZeRO stage.
STAGES = {"dp2": 0, "zero3": 3}


def plans_of(space: Space, precision: str = PRECISION, stages: Iterable[int] = STAGES.values()) -> list[Plan]:
    """A plan of each ZeRO stage, all samples of a rank in one micro-batch."""
    return [
        Plan(
            data_parallel=RANKS,
            micro_batch_size=space.at.global_batch_size // RANKS,
            zero_stage=stage,
            precision=precision,
        )
        for stage in stages
    ]


def predicted(
    machine: MachineProfile,
    model: ModelProfile,
    batch: int,
    precision: str = PRECISION,
    stages: Sequence[int] = tuple(STAGES.values()),
) -> PlanFile:
    """A plan file of a plan of each ZeRO stage."""
    at = measured_setting(machine, model, RANKS, batch, model.usual_size or 1, precision)
    space = explore(at, Options(offload=("none",), recompute=("none",), zero_stages=tuple(stages)))
    plans = plans_of(space, precision, stages)
    found = [find(space, plan) for plan in plans]
    candidates = [
        Candidate(rank=1 + index, plan=plan, prediction=predictions(own, [place])[0], verdict="", executable=True)
        for index, (plan, (own, place)) in enumerate(zip(plans, found, strict=True))
    ]
    return plan_file(planned_for(at), candidates, num_legal=len(candidates), rejected={}, notes=())
