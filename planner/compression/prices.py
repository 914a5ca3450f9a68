"""What each recipe would give on a machine: bytes, training time in its best layout, latency; which are worth a look.

A smaller dense model is priced as any model is. Training it from a teacher adds the teacher's forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.compression.forward import (
    job_of,
    quantised_seconds,
    rounding_seconds,
    sample_seconds,
    scaled_seconds,
    why_unknown,
)
from planner.compression.recipes import (
    CompressionChoice,
    Recipe,
    recipe,
    risk,
    smaller_weights,
    speed_note,
    stored_bytes,
)
from planner.compression.smaller_settings import as_sent
from planner.compression.teacher import teacher_bytes, teacher_seconds
from planner.compression.trainable import Searches, Trained
from planner.space.question import Setting
from planner.space.weights import Weights, weights_of
from planner.terminal.progress import OnProgress, silent
from profiles.errors import InputError, NoFeasiblePlanError, PlanError

TARGETS = ("size", "latency", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The model as it is, in its setting: what recipes are measured against, and what was searched for them."""

    at: Setting
    weights: Weights
    best: Trained
    latency_seconds: float
    searches: Searches


def parse_targets(text: str | None) -> dict[str, float]:
    """`size=0.5,latency=0.8`: what share of the uncompressed model's a choice may have; memory is that of training.

    Raises: InputError.
    """
    targets: dict[str, float] = {}
    if text is not None and not text.strip(" ,"):
        raise InputError("--target: give shares such as size=0.5,latency=0.8")
    for word in (text or "").split(","):
        name, _, value = word.strip().partition("=")
        if not word.strip():
            continue
        try:
            targets[name] = float(value)
        except ValueError:
            targets[name] = 0.0
        if name not in TARGETS or not 0 < targets[name] <= 1:
            raise InputError(f"--target {word}: give size=, latency= or memory= and a share above 0, up to 1")
    return targets


def compression_choices(
    at: Setting, recipes: Sequence[Recipe], targets: dict[str, float], on_progress: OnProgress = silent
) -> tuple[CompressionChoice, ...]:
    """Every recipe with its price; what cannot be had keeps its reason.

    Raises: InputError where recipes do not know the model; NoFeasiblePlanError where it cannot be trained here.
    """
    if not at.model.config:
        raise InputError(f"{at.model.name}: compression needs a transformers configuration, not a factory")
    at, weights = as_sent(at), weights_of(at.model.name, at.model.config)
    searches = Searches(whole=at)
    whole = Whole(
        at=at,
        weights=weights,
        best=searches.best(recipe("none")),
        latency_seconds=sample_seconds(at),
        searches=searches,
    )
    made = []
    for number, own in enumerate(recipes):
        on_progress(number / len(recipes), own.name)
        made.append(_priced(whole, own))
    return tuple(
        replace(choice, meets_targets=_meets(whole, choice, targets), on_front=is_on_front(choice, made))
        for choice in made
    )


def _priced(whole: Whole, own: Recipe) -> CompressionChoice:
    at = whole.at
    try:
        _check_rows(whole, own)
        best = whole.searches.best(own)
    except (PlanError, NoFeasiblePlanError) as error:
        return _refused(whole, own, str(error))
    step, peak = best.prediction.step_seconds, best.prediction.peak_bytes
    if own.method == "distil":
        step, peak = step + teacher_seconds(at, best.plan), peak + float(teacher_bytes(job_of(at, best.plan))[0])
    if own.method == "qat":
        step += rounding_seconds(at, whole.weights, best.plan)
    latency: float | None = whole.latency_seconds
    if best.at.model is not at.model:
        latency = scaled_seconds(at, whole.latency_seconds, best.at)
    traced, notes = at.measured, []
    notes.append(speed_note(own, traced.machine.device_kind if traced else "cuda"))
    if own.scheme:
        latency = quantised_seconds(at, whole.weights, own.scheme, whole.latency_seconds)
        notes.append("" if latency is not None else why_unknown(at, own.scheme))
    return CompressionChoice(
        recipe=own,
        plan=best.plan,
        num_parameters=int(smaller_weights(whole.weights, own).num_parameters),
        stored_bytes=stored_bytes(whole.weights, own),
        step_seconds=step,
        peak_bytes=peak,
        latency_seconds=latency,
        risk=risk(own),
        note="; ".join(filter(None, notes)),
    )


def _check_rows(whole: Whole, own: Recipe) -> None:
    if own.part == "2:4" and any(inputs % 4 for _, inputs, _ in whole.weights.linears):
        raise PlanError(f"{own.name}: {whole.weights.name} has rows whose length is not a multiple of four")


def _refused(whole: Whole, own: Recipe, reason: str) -> CompressionChoice:
    return CompressionChoice(
        recipe=own,
        plan=whole.best.plan,
        num_parameters=0,
        stored_bytes=0.0,
        step_seconds=0.0,
        peak_bytes=0.0,
        latency_seconds=None,
        risk="",
        refusal=reason,
        meets_targets=False,
        on_front=False,
    )


def _meets(whole: Whole, choice: CompressionChoice, targets: dict[str, float]) -> bool:
    if choice.refusal:
        return False
    limits = {
        "size": (choice.stored_bytes, stored_bytes(whole.weights, recipe("none"))),
        "latency": (choice.latency_seconds, whole.latency_seconds),
        "memory": (choice.peak_bytes, whole.best.prediction.peak_bytes),
    }
    pairs = [(limits[name], share) for name, share in targets.items()]
    return all(own is not None and own <= share * of_whole for (own, of_whole), share in pairs)


def is_on_front(choice: CompressionChoice, others: Sequence[CompressionChoice]) -> bool:
    """Whether no other is at least as good in all and better in one; an unknown latency is never better."""
    if choice.refusal:
        return False

    def measures(one: CompressionChoice) -> tuple[float, ...]:
        return one.step_seconds, one.stored_bytes, one.latency_seconds or float("inf")

    own = measures(choice)
    return not any(
        all(a <= b for a, b in zip(measures(other), own, strict=True)) and measures(other) != own
        for other in others
        if not other.refusal
    )
