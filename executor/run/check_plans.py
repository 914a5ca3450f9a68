"""The check of every plan that is to be run, on a model that fits beside it: narrower where even few layers do not."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from executor.mesh import Meshes
from executor.run.batches import Data, Text
from executor.run.check_subject import Subject, subject_of
from executor.run.check_training import TrainingCheck
from executor.run.checks import facts_of_workload
from executor.run.faults import explained
from executor.run.measurement import LossCheck
from planner.legality import refusal
from planner.plans import Plan
from profiles.codecs.codec import codec
from profiles.models.profile import MIXED
from profiles.ranks.environment import ranks_per_host
from profiles.ranks.rank import Rank, report
from profiles.workloads.loading import load_workload
from profiles.workloads.workload import Workload

# fp32 weights, gradients and the way gone of the plain loop; another model with gradients, and what parts are like.
PLAIN_BYTES, EXACT_BYTES, PARTS_BYTES = 12, 8, 12
# fp32 weights as they are built and as they are held, gradients and moments.
TRAINER_BYTES = 20
ROOM_FRACTION = 0.6
# What makes a transformer of a known family wide, and the fewest tokens that text is fed as.
WIDTHS = (
    "hidden_size", "n_embd", "intermediate_size", "n_inner", "moe_intermediate_size", "num_attention_heads", "n_head",
    "num_key_value_heads",
)  # fmt: skip
LEAST_VOCABULARY, VOCABULARY_STEP, MOST_HALVINGS = 256, 64, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What the checks of a launch share; `num_parameters` are the whole model's."""

    workload: Workload
    data: Data
    num_parameters: int
    rank: Rank
    meshes: Meshes
    folder: Path | None
    timeout_seconds: float

    def of(self, plans: Sequence[Plan]) -> list[LossCheck]:
        """The checks of some plans, in their order; collective."""
        found = []
        for number, plan in enumerate(plans):
            report(0.0, f"checking {plan.id}")
            with explained(plan, self.rank, 1, self.timeout_seconds, 0.0):
                found.append(self._check(plan, f"check {number}"))
            gc.collect()
            if self.rank.device.type == "cuda":
                torch.cuda.empty_cache()
            if plan.compiled:
                # What was compiled for short samples would make long ones' kernels fit any length.
                torch.compiler.reset()
        return found

    def _check(self, plan: Plan, key: str) -> LossCheck:
        # Rank 0's view of the memory counts, for all must agree.
        room: list[Any] = [_free_bytes(self.rank) * ROOM_FRACTION]
        dist.broadcast_object_list(room)
        for subject in _subjects(plan, self.workload, self.data):
            is_whole = subject.workload.task is not None or subject.workload.whole is not None
            size = self.num_parameters if is_whole else num_parameters(subject.workload)
            if _needed_bytes(plan, size, self.rank) <= room[0]:
                return TrainingCheck(subject, self.rank, self.meshes, key, self.folder).run()
        reason = "there is no memory for the plain loop that training is checked against"
        return LossCheck(status="skipped", reason=reason, tolerance_fraction=0.0)


def _subjects(plan: Plan, workload: Workload, data: Data) -> Iterator[Subject]:
    """What the plan can be checked on, the widest first."""
    yield subject_of(plan, workload, data)
    for halvings in range(1, MOST_HALVINGS):
        narrow = narrowed(workload, 2**halvings)
        if narrow is None:
            return
        subject = subject_of(plan, narrow, data)
        length = subject.data.sequence_length if isinstance(subject.data, Text) else narrow.max_sequence_length
        if refusal(subject.plan, facts_of_workload(subject.workload), length):
            return
        words = f"{subject.words or 'on all layers'}, at 1/{2**halvings} of its width"
        yield replace(subject, words=words)


def narrowed(workload: Workload, factor: int) -> Workload | None:
    """A model of a known family with every width divided, heads whole as they are; None where that cannot be."""
    if workload.spec.kind != "transformers" or workload.task is not None:
        return None
    config = dict(workload.spec.config)
    for name in WIDTHS:
        value = config.get(name)
        if isinstance(value, int):
            if value % factor:
                return None
            config[name] = value // factor
    if workload.spec.reads_text:
        vocabulary = int(config.get("vocab_size", workload.vocab_size)) // factor
        config["vocab_size"] = max(LEAST_VOCABULARY, vocabulary // VOCABULARY_STEP * VOCABULARY_STEP)
    return load_workload(replace(workload.spec, config=config))


def num_parameters(workload: Workload) -> int:
    """Parameters of layers that are built without weights."""
    with torch.device("meta"):
        layers = [workload.build_layer(position) for position in range(len(workload.layers))]
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())


def _needed_bytes(plan: Plan, size: int, rank: Rank) -> float:
    """What rank 0's device, or this host, holds of a check of that many parameters."""
    plain = PLAIN_BYTES + EXACT_BYTES * (plan.precision in MIXED) + PARTS_BYTES * codec(plan.codec).lossy
    together = ranks_per_host(rank.num_ranks) if rank.device.type == "cpu" else 1
    return size * (plain + TRAINER_BYTES * together / (plan.tensor_parallel * plan.pipeline_parallel))


def _free_bytes(rank: Rank) -> float:
    if rank.device.type == "cuda":
        return float(torch.cuda.mem_get_info(rank.device)[0])
    return float(psutil.virtual_memory().available)


def both(training: LossCheck, losses: LossCheck) -> LossCheck:
    """One verdict of the check before training, and of the first losses of training itself."""
    reason = f"{training.reason}; {losses.reason}"
    if training.status == "failed" or losses.status == "failed":
        failed = training if training.status == "failed" else losses
        status, reason = failed.status, failed.reason
    else:
        status = losses.status if training.status == "skipped" else training.status
    return replace(
        losses,
        status=status,
        reason=reason,
        gradient_tolerance_fraction=training.gradient_tolerance_fraction,
        largest_gradient_difference_fraction=training.largest_gradient_difference_fraction,
        largest_weight_difference_fraction=training.largest_weight_difference_fraction,
        found=training.found,
    )
