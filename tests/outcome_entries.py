"""What the ranks of the gathering test do: tell of steps that never ran."""

import math
import random
from array import array
from dataclasses import asdict
from typing import Any

from executor.mesh import Meshes, coordinates, groups_of
from executor.observe.events import Action, StepTrace
from executor.observe.kept_steps import KeptSteps
from executor.run.outcomes import Outcome, account
from executor.run.reference import Checked
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.machines.counters import Watch
from profiles.ranks.rank import join_group


def made_traces(plan: Plan, rank: int, number: int) -> list[StepTrace]:
    """Steps of a rank, different ones on each, the same ones whoever asks."""
    draw = random.Random(rank)
    result = []
    for step in range(number):
        start = now = 100.0 * step + draw.random()
        actions = []
        for name, microbatch in [
            *((name, m) for m in range(plan.num_microbatches) for name in "FB"),
            ("optimizer", -1),
        ]:
            begun = now + draw.random()
            now = begun + draw.random()
            actions.append(Action(name=name, microbatch=microbatch, start_seconds=begun, stop_seconds=now))
        result.append(
            StepTrace(start_seconds=start, stop_seconds=now + 0.1, actions=tuple(actions), ready_seconds=None)
        )
    return result


def gather(payload: dict[str, Any]) -> dict[str, Any] | None:
    """The account of made-up steps and losses, on rank 0."""
    plan, number = validate(payload["plan"], Plan, "the test"), payload["steps"]
    with join_group("cpu") as rank:
        place = coordinates(plan, rank.rank)
        mesh = Meshes("cpu").of(plan)
        steps = KeptSteps()
        for trace in made_traces(plan, rank.rank, number):
            steps.add(trace)
        computes = place.pipeline == plan.pipeline_parallel - 1
        losses = array("d", [float(step + rank.rank) for step in range(number)] if computes else [])
        if computes and "bad" in payload:
            losses[payload["bad"]] = math.nan
        outcome = Outcome(
            place=place,
            steps=steps,
            exchange_seconds=None,
            losses=losses,
            peak_bytes=1.0,
            counted=Watch((0,)).counted,
            checked=Checked(losses=(None if not computes else 1.0,), norms=(1.0,)),
        )
        found = account(plan, outcome, groups_of(plan, mesh).stages, rank.device)
    return None if found is None else asdict(found)
