"""What each recipe would give on a machine: bytes, training time in its best layout, latency; which are worth a look.

A smaller dense model is priced as any model is. Training it from a teacher adds the teacher's forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.compression.recipes import (
    FULL_BYTES,
    CompressionChoice,
    Recipe,
    cannot_train,
    recipe,
    risk,
    smaller,
    smaller_weights,
    speed_note,
    stored_bytes,
)
from planner.compression.teacher import forward_seconds, teacher_bytes, teacher_seconds
from planner.measured.explain import candidates
from planner.measured.layer_costs import find_curve
from planner.measured.search import Choices, Search, search
from planner.plans import Plan
from planner.prediction import Candidate
from planner.space.weights import Weights, weights_of
from planner.terminal.progress import OnProgress, silent
from profiles.errors import InputError, NoFeasiblePlanError, PlanError
from profiles.laws.curves import kernel_seconds
from profiles.machines.profile import MachineProfile
from profiles.models.profile import ModelProfile

TARGETS = ("size", "latency", "memory")
MANY_PLANS = 1000
FULL_PRECISION = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The model as it is, on its machine: what recipes are measured against."""

    machine: MachineProfile
    model: ModelProfile
    weights: Weights
    choices: Choices
    best: Candidate
    latency_seconds: float


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
    found: Search, recipes: Sequence[Recipe], targets: dict[str, float], on_progress: OnProgress = silent
) -> tuple[CompressionChoice, ...]:
    """Every recipe with its price; what cannot be had keeps its reason.

    Raises: InputError where recipes do not know the model; NoFeasiblePlanError where it cannot be trained here.
    """
    if found.model.workload.kind != "transformers":
        raise InputError(f"{found.model.name}: compression needs a transformers configuration, not a factory")
    choices = replace(found.choices, codecs=("none",))
    whole = Whole(
        machine=found.machine,
        model=found.model,
        weights=weights_of(found.model.name, found.model.workload.config),
        choices=choices,
        best=_trainable(search(found.machine, found.model, choices), recipe("none")),
        latency_seconds=_inference_seconds(found.machine, found.model, replace(choices, precisions=(FULL_PRECISION,))),
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
    try:
        _check_rows(whole, own)
        config = smaller(whole.weights.config, own)
        left = _model_of(whole, own, config)
        best = _trainable(search(whole.machine, left, whole.choices), own)
    except (PlanError, NoFeasiblePlanError) as error:
        return _refused(whole, own, str(error))
    step, latency = best.prediction.step_seconds, _latency_seconds(whole, left)
    if own.method == "distil":
        step += teacher_seconds(whole.machine, whole.model, whole.choices, best.plan)
    if own.method == "qat":
        step += _rounding_seconds(whole, best.plan)
    teaching = teacher_bytes(whole.model, whole.choices, best.plan) if own.method == "distil" else 0.0
    note = speed_note(own, whole.machine.device_kind)
    seconds: float | None = latency
    if own.scheme:
        seconds = _quantised_seconds(whole, own, latency)
    return CompressionChoice(
        recipe=own,
        plan=best.plan,
        num_parameters=int(smaller_weights(whole.weights, own).num_parameters),
        stored_bytes=stored_bytes(whole.weights, own),
        step_seconds=step,
        peak_bytes=best.prediction.peak_bytes + teaching,
        latency_seconds=seconds,
        risk=risk(own),
        note=note,
    )


def _check_rows(whole: Whole, own: Recipe) -> None:
    if own.part == "2:4" and any(inputs % 4 for _, inputs, _ in whole.weights.linears):
        raise PlanError(f"{own.name}: {whole.weights.name} has rows that are no multiple of four")


def _model_of(whole: Whole, own: Recipe, config: dict[str, object]) -> ModelProfile:
    """The traced profile of the model that a recipe leaves."""
    if config == whole.model.workload.config:
        return whole.model
    # Only a trace needs torch, which takes seconds to import.
    from profiles.tracing.trace import trace
    from profiles.workloads.loading import load_workload

    spec = replace(whole.model.workload, name=f"{whole.model.name} {own.name}", config=config)
    return trace(load_workload(spec), tuple(dict.fromkeys((*whole.choices.precisions, FULL_PRECISION))))


def _trainable(found: Search, own: Recipe) -> Candidate:
    """The best plan whose layout a recipe is executed in: data parallel, sharded or not; else tensor parallel.

    Raises: NoFeasiblePlanError.
    """
    ranked, _ = candidates(found, MANY_PLANS)
    fitting = [candidate for candidate in ranked if candidate.executable and candidate.prediction.fits]
    possible = [candidate for candidate in fitting if not cannot_train(own, candidate.plan)]
    if not possible:
        raise NoFeasiblePlanError(
            f"no plan of {found.model.name} that {own.name} can be trained in fits {found.choices.num_devices} devices"
        )
    return min(possible, key=lambda candidate: candidate.plan.tensor_parallel > 1)


def _latency_seconds(whole: Whole, left: ModelProfile) -> float:
    """One forward pass of one sample through the model that is left, in fp32: as models are stored and judged.

    Model: that of the whole model as its layers were timed, scaled by what kernels alone say of the two.
    """
    kernels = replace(whole.machine, layer_timings=())
    choices = replace(whole.choices, precisions=(FULL_PRECISION,))
    own, of_whole = (forward_seconds(kernels, model, choices, 1) for model in (left, whole.model))
    return whole.latency_seconds * own / of_whole


def _inference_seconds(machine: MachineProfile, model: ModelProfile, choices: Choices) -> float:
    """One forward pass of one sample without a loss, as its layers were timed; else as training's forward pass."""
    timed = {
        timing.layer: timing.inference_seconds
        for timing in machine.layer_timings
        if timing.workload == model.workload.digest
        and timing.precision == choices.precisions[0]
        and timing.sequence_length == choices.sequence_length
        and timing.inference_seconds
    }
    layers = model.layers[choices.precisions[0]]
    if all(layer.name in timed for layer in layers):
        return sum(timed[layers[index].name] for index in model.structure)
    return forward_seconds(machine, model, choices, 1)


def _quantised_seconds(whole: Whole, own: Recipe, latency: float) -> float | None:
    """The latency with every linear in 8 bits; None where the machine was not measured for it.

    Model: the forward pass, less its linears in fp32, plus the same in 8 bits, both as measured linear by linear.
    """
    curves = {curve.name: curve for curve in whole.machine.kernels if curve.kind == "linear"}
    if own.scheme not in curves or FULL_PRECISION not in curves:
        return None
    tokens = float(whole.choices.sequence_length)
    for count, inputs, outputs in whole.weights.linears:
        dims = (tokens, inputs, outputs)
        flops, weights = 2 * tokens * inputs * outputs, inputs * outputs
        full, low = (float(kernel_seconds(curves[name], flops, weights, dims)) for name in (FULL_PRECISION, own.scheme))
        latency += count * (low - full)
    return latency


def _rounding_seconds(whole: Whole, plan: Plan) -> float:
    """Rounding every linear's weights and input in the forward pass of each micro-batch; backward passes it by."""
    tokens = float(plan.micro_batch_size * whole.choices.sequence_length)
    curve = find_curve(whole.machine, "memory", "rounding", FULL_PRECISION)
    numbers = [
        size
        for count, inputs, outputs in whole.weights.linears
        for size in [inputs * outputs, tokens * inputs] * int(count)
    ]
    num_bytes = FULL_BYTES * np.array(numbers)
    return float(kernel_seconds(curve, 0.0, num_bytes, [num_bytes]).sum()) * plan.num_microbatches


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
