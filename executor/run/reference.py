"""A note on training itself, where one device holds the model: its first losses and gradient norms against that one's.

What a layout computes is checked before it, parameter by parameter (`check_training`); this is of the real model.

AdamW takes steps of one length whatever the gradients are multiplied by, so that losses alone would pass a layout that
gets those wrong. What draws random numbers is compared without them, in steps of its own: ranks draw others than one
device would.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor

from executor.engines import Trains
from executor.run.batches import Data
from executor.run.measurement import LossCheck, Status
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.codecs.codec import codec
from profiles.models.profile import SCALED
from profiles.ranks.rank import Rank
from profiles.workloads.workload import Workload

NUM_STEPS = 3
# Of a run, whose later steps are checked before it on a smaller model.
NUM_STEPS_OF_A_RUN = 1
# Of a run by another engine, which nothing else is checked of.
NUM_STEPS_OF_AN_ENGINE = 10
# Relative, of losses and of gradient norms. fp32 differs by the order of sums alone; bf16 rounds activations to 8 bits,
# and AdamW amplifies that. tf32 and fp16 keep three bits more; fp8 is bf16 whose scales depend on the micro-batch (3e-3
# seen).
TOLERANCE_FRACTIONS = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 2e-2, "fp16": 5e-3, "fp8": 2e-2}
# Of the first loss, where ranks compute what one device computes but for the average (1e-7 seen); later ones are of
# weights that differ in their last bits, by which a token may go to another expert.
SAME_SUMS_FRACTION = 1e-6
NORM_TOLERANCE_FRACTIONS = {"fp32": 1e-3, "tf32": 5e-2, "bf16": 1e-1, "fp16": 5e-2, "fp8": 2e-1}
# fp32 weight, gradient and two moments.
STATE_BYTES_PER_PARAMETER = 16
ROOM_FRACTION = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The first losses and gradient norms of a layout, with None for losses that a rank does not compute."""

    losses: tuple[float | None, ...] = ()
    norms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One device's first losses and gradient norms; none where it does not hold the model.

    `is_silent` tells that no random numbers were drawn, where training would; `keeps_statistics` that the model has
    norms over a micro-batch, whose size its loss depends on.
    """

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    micro_batch_size: int = 0
    is_silent: bool = False
    keeps_statistics: bool = False


def references_of(
    workload: Workload,
    plans: Sequence[Plan],
    samples: Data,
    rank: Rank,
    num_parameters: int,
    num_steps: int = NUM_STEPS,
) -> dict[int, Reference]:
    """The first steps on this one device, of plans of one precision, for each size of their micro-batches.

    They are the same for all sizes, but for a model with norms over a micro-batch.
    """
    smallest = reference_of(workload, plans, samples, rank, num_parameters, num_steps)
    sizes = {plan.micro_batch_size: [plan] for plan in plans}
    return {
        size: reference_of(workload, alike, samples, rank, num_parameters, num_steps)
        if smallest.keeps_statistics and size != smallest.micro_batch_size
        else smallest
        for size, alike in sizes.items()
    }


def reference_of(
    workload: Workload,
    plans: Sequence[Plan],
    samples: Data,
    rank: Rank,
    num_parameters: int,
    num_steps: int = NUM_STEPS,
) -> Reference:
    """The first steps on this one device, of plans of one precision.

    The global batch is worked off in the smallest micro-batch of the plans, so that activations stay bounded.
    """
    if rank.device.type == "cpu":
        available = psutil.virtual_memory().available
        if STATE_BYTES_PER_PARAMETER * num_parameters > ROOM_FRACTION * available:
            return Reference()
    size = min(plan.micro_batch_size for plan in plans)
    count = plans[0].global_batch_size
    plan = Plan(micro_batch_size=size, num_microbatches=count // size, precision=plans[0].precision)
    try:
        trainer = Trainer(plan, workload, rank, samples.seed, None)
        # Whether it draws anything is seen where its loss is another without: not everything says so of itself.
        drawn = first_steps(trainer, samples, 1) if trainer.draws else None
        if drawn is not None:
            trainer = Trainer(plan, workload, rank, samples.seed, None, is_silent=True)
        found = first_steps(trainer, samples, num_steps)
        keeps_statistics = any(name.rpartition(".")[2].startswith("running_") for name in trainer.buffers)
        del trainer
    except torch.OutOfMemoryError:
        return Reference()
    gc.collect()
    if rank.device.type == "cuda":
        torch.cuda.empty_cache()
    return Reference(
        losses=tuple(loss for loss in found.losses if loss is not None),
        norms=found.norms,
        micro_batch_size=size,
        keeps_statistics=keeps_statistics,
        is_silent=drawn is not None and (drawn.losses[0], drawn.norms[0]) != (found.losses[0], found.norms[0]),
    )


def taken_step(trainer: Trains, *batch: Any) -> Tensor | None:
    """A trainer's step, again with a smaller scale where fp16 skipped it; the loss of this replica."""
    loss, _ = trainer.step(*batch)
    while trainer.scale is not None and trainer.scale.is_skipping:
        loss, _ = trainer.step(*batch)
    return loss


def first_steps(trainer: Trains, samples: Data, num_steps: int) -> Checked:
    """Losses and gradient norms of the first steps of a trainer that has taken none."""
    losses, norms = [], []
    trainer.measures_norm = True
    for step in range(num_steps):
        loss = taken_step(trainer, *samples.batch(step, trainer.plan.global_batch_size))
        losses.append(None if loss is None else float(loss))
        norms.append(trainer.gradient_norm)
    return Checked(losses=tuple(losses), norms=tuple(norms))


def alike(reference: Reference, losses: Sequence[float], norms: Sequence[float]) -> tuple[Reference, tuple[float, ...]]:
    """As much of a reference as there are losses and norms to compare, and of these as many as it has."""
    count = min(len(losses), len(reference.losses))
    shorter = replace(reference, losses=reference.losses[:count], norms=reference.norms[: len(norms)])
    return shorter, tuple(losses[:count])


def first_tolerance(plan: Plan, micro_batch_size: int) -> float:
    """By how much the first loss may differ from one device's that works in micro-batches of that size."""
    splits = plan.tensor_parallel * plan.context_parallel * plan.expert_parallel > 1
    if plan.precision != "fp32" or splits or plan.micro_batch_size != micro_batch_size:
        return TOLERANCE_FRACTIONS[plan.precision]
    return SAME_SUMS_FRACTION


def check_losses(
    plan: Plan, losses: Sequence[float], norms: Sequence[float], reference: Reference, first_step: int = 0
) -> LossCheck:
    """Compare a plan's first losses and gradient norms with one device's, of which there must be as many."""
    tolerance, allowed = TOLERANCE_FRACTIONS[plan.precision], NORM_TOLERANCE_FRACTIONS[plan.precision]
    first = first_tolerance(plan, reference.micro_batch_size)
    if first_step or not reference.losses:
        reason = f"resumes from step {first_step}" if first_step else "the model does not fit on one device"
        return LossCheck(status="skipped", reason=reason, tolerance_fraction=tolerance)
    count = len(reference.losses)
    which = "first loss" if count == 1 else f"first {count} losses"
    when = "step" if len(norms) == 1 else f"{len(norms)} steps"
    difference = _largest_difference(losses, reference.losses)
    # A step of a training that fp16 skips has gradients that are no numbers.
    pairs = [(own, norm) for own, norm in zip(norms, reference.norms, strict=True) if not _is_skipped(plan, own)]
    of_norms = _largest_difference([own for own, _ in pairs], [norm for _, norm in pairs])
    without = ", compared with dropout off" if reference.is_silent else ""
    status: Status
    if codec(plan.codec).lossy:
        status, reason = "exempt", f"codec {plan.codec} is lossy"
    elif _largest_difference(losses[:1], reference.losses[:1]) > first:
        status, reason = "failed", f"the first loss differs from one device's by more than {first:g}{without}"
    elif difference > tolerance:
        status = "failed"
        reason = f"{which} differ{'s' * (count == 1)} from one device's by more than {tolerance:g}{without}"
    elif of_norms > allowed:
        status = "failed"
        reason = f"gradient norms of the first {when} differ from one device's by more than {allowed:g}{without}"
    else:
        status = "passed"
        of_which = "" if len(norms) == count else f"of the first {when} "
        beside = f"gradient norms {of_which}within {allowed:g}" if pairs else "its step skipped by the fp16 loss scale"
        reason = f"{which} within {tolerance:g} of one device, {beside}{without}"
    return LossCheck(
        status=status,
        reason=reason,
        tolerance_fraction=tolerance,
        largest_difference_fraction=difference if math.isfinite(difference) else None,
        reference_losses=tuple(reference.losses),
        norm_tolerance_fraction=allowed,
        largest_norm_difference_fraction=of_norms if math.isfinite(of_norms) else None,
    )


def _is_skipped(plan: Plan, norm: float) -> bool:
    return plan.precision == SCALED and math.isnan(norm)


def _largest_difference(values: Sequence[float], wanted: Sequence[float]) -> float:
    differences = [abs(value - other) / (abs(other) or 1.0) for value, other in zip(values, wanted, strict=True)]
    return max(differences, default=0.0) if all(map(math.isfinite, differences)) else math.inf
