"""The check that a layout trains the same model: its first losses against one device, micro-batch by micro-batch."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import psutil
import torch

from executor.run.batches import Samples
from executor.run.measurement import LossCheck, Status
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.codecs.codec import codec
from profiles.ranks.rank import Rank
from profiles.workloads.workload import Workload

NUM_STEPS = 3
# Relative. fp32 differs by the order of sums alone; bf16 rounds activations to 8 bits, and AdamW amplifies that.
# tf32 keeps two bits more; fp8 is bf16 whose scales depend on the micro-batch (3e-3 seen).
TOLERANCE_FRACTIONS = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 2e-2, "fp8": 2e-2}
# fp32 weight, gradient and two moments.
STATE_BYTES_PER_PARAMETER = 16
ROOM_FRACTION = 0.7


def reference_losses(
    workload: Workload, plans: Sequence[Plan], samples: Samples, rank: Rank, num_parameters: int
) -> tuple[float, ...]:
    """Losses of the first steps on this one device, of plans of one precision; () where they would not fit.

    The global batch is worked off in the smallest micro-batch of the plans, so that activations stay bounded.
    """
    if rank.device.type == "cpu":
        available = psutil.virtual_memory().available
        if STATE_BYTES_PER_PARAMETER * num_parameters > ROOM_FRACTION * available:
            return ()
    size = min(plan.micro_batch_size for plan in plans)
    count = plans[0].global_batch_size
    plan = Plan(micro_batch_size=size, num_microbatches=count // size, precision=plans[0].precision)
    losses = []
    try:
        trainer = Trainer(plan, workload, rank, samples.seed, None)
        for step in range(NUM_STEPS):
            loss, _ = trainer.step(*samples.batch(step, count))
            assert loss is not None
            losses.append(float(loss))
        del trainer
    except torch.OutOfMemoryError:
        return ()
    gc.collect()
    if rank.device.type == "cuda":
        torch.cuda.empty_cache()
    return tuple(losses)


def check_losses(plan: Plan, losses: Sequence[float], reference: Sequence[float], first_step: int = 0) -> LossCheck:
    """Compare a plan's first losses with one device's."""
    tolerance = TOLERANCE_FRACTIONS[plan.precision]
    if first_step or not reference:
        reason = f"goes on from step {first_step}" if first_step else "the model does not fit on one device"
        return LossCheck(status="skipped", reason=reason, tolerance_fraction=tolerance)
    pairs = list(zip(losses, reference, strict=False))
    difference = max(abs(loss - wanted) / abs(wanted) for loss, wanted in pairs)
    passed = difference <= tolerance
    status: Status
    if codec(plan.codec).lossy:
        status, reason = "exempt", f"codec {plan.codec} is lossy"
    elif passed:
        status, reason = "passed", f"first {len(pairs)} losses within {tolerance:g} of one device"
    else:
        status, reason = "failed", f"first {len(pairs)} losses differ from one device by more than {tolerance:g}"
    return LossCheck(
        status=status,
        reason=reason,
        tolerance_fraction=tolerance,
        largest_difference_fraction=difference,
        reference_losses=tuple(reference),
    )
