"""The answer for two kinds of devices: the best plans across both, ranked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from planner.cost.factors import load_learned
from planner.mixed.mixed_plans import MixedPlan, of_replicas, of_stages
from planner.mixed.mixture import Mixture, legal_rows
from planner.mixed.replayed_stages import best_across_stages
from planner.mixed.replicas import Shared, share
from planner.mixed.stages import deal
from planner.prediction import PlanFile
from planner.space.answers import is_executable, why_not_run
from planner.space.explore import NO_ROOM
from planner.space.files import plan_file, planned_for, ranked
from planner.terminal.progress import OnProgress, silent
from profiles.errors import NoFeasiblePlanError
from profiles.units import format_bytes


def mixed_answer(
    asked: Mixture, top: int, simulate: bool, notes: Sequence[str], on_progress: OnProgress = silent
) -> PlanFile:
    """The `top` fastest plans across both pools, those that the executor refuses only with `simulate`.

    Raises: NoFeasiblePlanError where none fits.
    """
    learned = load_learned()
    priced: list[MixedPlan] = []
    num_legal = num_fitting = 0
    # Whichever pool comes first, ranks count from it.
    for done, turned in enumerate((asked, asked.turned())):
        on_progress(done / 3, f"pipelines from {turned.first.at.device.name} on")
        piped, _ = legal_rows(turned)
        tables = deal(turned, piped, learned)
        num_legal += len(piped)
        num_fitting += sum(int(own.fits.sum()) for own in tables)
        priced += [of_stages(turned, own, learned) for own in best_across_stages(tables)]
    _, replicated = legal_rows(asked)
    on_progress(2 / 3, "replicas on each kind")
    shared = share(asked, replicated, learned)
    num_legal += len(shared.rows)
    num_fitting += int(shared.fits.sum())
    priced += [of_replicas(shared, row, learned) for row in _ranked(shared)]
    rejected = {NO_ROOM: num_legal - num_fitting}
    chosen = _distinct(asked, priced, top, simulate)
    if not chosen:
        counts = "; ".join(f"{count} x {reason}" for reason, count in rejected.items() if count)
        raise NoFeasiblePlanError(
            f"no plan of {asked.first.at.model.name} across {_names(asked)}: {counts or 'none is legal'}"
            + ("; all that fit can only be simulated: pass --simulate to see them" if priced else "")
        )
    return _file(asked, chosen, num_legal, rejected, notes)


def _distinct(asked: Mixture, priced: Sequence[MixedPlan], top: int, simulate: bool) -> list[MixedPlan]:
    """The fastest plans, one of each product of degrees, in order."""
    best: dict[tuple[object, ...], MixedPlan] = {}
    for own in sorted(priced, key=lambda each: each.step_seconds):
        plan = own.plan
        key = (plan.data_parallel, plan.tensor_parallel, plan.context_parallel, plan.pipeline_parallel,
               plan.expert_parallel, plan.zero_stage, bool(plan.replica_microbatches))  # fmt: skip
        if key not in best and (simulate or not why_not_run(asked.first.at, plan)):
            best[key] = own
            if len(best) == top:
                break
    return list(best.values())


def _ranked(shared: Shared, most: int = 200) -> list[int]:
    """The fastest rows that fit, even and uneven ones each."""
    rows: list[int] = []
    for kind in (shared.is_even, ~shared.is_even):
        seconds = np.where(shared.fits & kind, shared.step_seconds, np.inf)
        order = np.argsort(seconds, kind="stable")
        rows += [int(row) for row in order[:most] if np.isfinite(seconds[row])]
    return rows


def _names(asked: Mixture) -> str:
    return " + ".join(f"{part.num_devices} x {part.at.device.name}" for part in asked.parts)


def _file(
    asked: Mixture, chosen: Sequence[MixedPlan], num_legal: int, rejected: dict[str, int], notes: Sequence[str]
) -> PlanFile:
    at = asked.first.at
    least = min(part.at.memory_bytes for part in asked.parts)
    plans, predicted = [own.plan for own in chosen], [own.predict() for own in chosen]
    return plan_file(
        replace(planned_for(at), machine_name=_names(asked)),
        ranked(plans, predicted, least, partial(is_executable, at), {}),
        num_legal=num_legal,
        rejected=rejected,
        notes=(*notes, f"memory of the kinds: {', '.join(_room(asked))}"),
    )


def _room(asked: Mixture) -> Iterator[str]:
    for part in asked.parts:
        yield f"{part.at.device.name} {format_bytes(part.at.memory_bytes)}"
