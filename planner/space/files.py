"""Plans and their predictions ranked as candidates, and the plan file that they go into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from planner.answers import Answers, NearestMiss
from planner.plans import Plan
from planner.prediction import Candidate, PlanFile, PlannedFor, Prediction
from planner.space.question import Setting
from planner.verdict import verdict


def planned_for(at: Setting) -> PlannedFor:
    """What plans of a setting are for; embedding and head count as layers."""
    machine = at.measured.machine if at.measured else None
    fingerprint = machine.fingerprint if machine else None
    return PlannedFor(
        model_name=at.model.name,
        workload=at.model.workload,
        num_layers=at.model.transformer.num_positions,
        num_parameters=round(float(at.model.transformer.num_parameters[0])),
        machine_name=at.device.name,
        machine_origin=machine.origin if machine else "datasheet",
        machine_device_kind=at.device_kind,
        machine_fingerprint=fingerprint.digest if fingerprint else "",
        num_devices=at.num_devices,
        global_batch_size=at.global_batch_size,
        sequence_length=at.sequence_length,
        size_unit=at.model.size_unit,
        stack=at.stack.name,
        stack_version=at.stack.runs.version if at.stack.runs else "",
        attention_kernel=at.attention_kernel if at.source is None else "",
        overlaps_tensor=at.overlaps_tensor,
        gradient_dtype=at.gradient_dtype,
        devices_per_node=at.devices_per_node,
        learned=dict(at.corrections.multiples) if at.corrections else {},
    )


def ranked(
    plans: Sequence[Plan],
    predicted: Sequence[Prediction],
    memory_bytes: float,
    can_run: Callable[[Plan], bool],
    names: Mapping[str, int],
) -> list[Candidate]:
    """The plans as candidates in this order, each with its verdict against the first; `names` are of some, by index."""
    result = []
    for index, (plan, own) in enumerate(zip(plans, predicted, strict=True)):
        words = verdict(memory_bytes, predicted[0], own, plan, is_best=index == 0)
        usual = ", ".join(name for name, number in names.items() if number == index)
        words = f"{words} [{usual}]" if usual else words
        result.append(Candidate(rank=index + 1, plan=plan, prediction=own, verdict=words, executable=can_run(plan)))
    return result


def plan_file(
    target: PlannedFor,
    candidates: Sequence[Candidate],
    *,
    num_legal: int,
    rejected: Mapping[str, int],
    notes: Sequence[str],
    baseline: int = -1,
    nearest_miss: NearestMiss | None = None,
) -> PlanFile:
    """The file of ranked candidates; plans that were turned down are counted by reason."""
    same: dict[str, Any] = {field.name: getattr(target, field.name) for field in fields(target)}
    return PlanFile(
        **same,
        candidates=tuple(candidates),
        baseline=baseline,
        num_legal=num_legal,
        rejected={reason: count for reason, count in rejected.items() if count},
        notes=tuple(notes),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        answers=Answers(nearest_miss=nearest_miss),
    )
