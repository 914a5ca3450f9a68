"""What two ranks run of the matrix: many models, each in every layout, held against one process.

A case that fails on both ranks, or is refused, is told and left behind. Where only one rank fails, the other waits in
vain: both end, and whoever started them starts two more behind that case.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map

from executor.mesh import Meshes
from executor.run.checks import check_task, facts_of_workload
from executor.run.own_data import TaskSamples
from executor.run.reference import first_steps
from executor.run.subject import workload_of_task
from executor.trainer import Trainer
from planner.legality import refusal
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.errors import InputError, PlanError, RankFailure
from profiles.models.profile import WorkloadSpec
from profiles.ranks.rank import Rank, is_lost_peer, join_group, report
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.task import Task
from profiles.workloads.task_loading import load_task
from tests.matrix.one_process import MICRO_BATCH, SAMPLES, SEED, STEPS, Steps, one_process

COUNT = SAMPLES // MICRO_BATCH
TWO_REPLICAS = {"data_parallel": 2, "micro_batch_size": MICRO_BATCH, "num_microbatches": COUNT // 2}
ONE_REPLICA = {"micro_batch_size": MICRO_BATCH, "num_microbatches": COUNT}
STAGES = {"pipeline_parallel": 2, "stage_bounds": (0, 1), **ONE_REPLICA}
# The layouts of each column, in all of which losses and norms must be those of one process.
LAYOUTS: Mapping[str, tuple[Plan, ...]] = {
    "data": (Plan(**TWO_REPLICAS),),
    "zero1": (Plan(zero_stage=1, **TWO_REPLICAS),),
    "zero2": (Plan(zero_stage=2, **TWO_REPLICAS),),
    "zero3": (Plan(zero_stage=3, **TWO_REPLICAS),),
    "recompute": (Plan(recompute="full", **TWO_REPLICAS),),
    "tensor": (Plan(tensor_parallel=2, **ONE_REPLICA),),
    "pipeline": tuple(Plan(schedule=schedule, **STAGES) for schedule in ("gpipe", "1f1b")),
}
# Random numbers of these are not those of one process: a rank draws for what it runs.
SILENT = ("tensor", "pipeline")
# By the kind of number and its step, from 1 on.
Differences: TypeAlias = dict[tuple[str, int], float]
# Relative. What differs by more than the first must not do so in double precision, where more than the order of sums
# would show. By more than the others it may not differ at all: in the first step, which is of equal weights, and in
# later ones, since AdamW moves a weight by a gradient that is only such a difference as far as by any other.
FRACTION, FIRST_FRACTION, LATER_FRACTION = 1e-6, 1e-5, 1e-4


def train(payload: dict[str, Any]) -> None:
    """Run the cases, models with the columns asked for, and report each as it begins and ends."""
    seconds = payload["patience_seconds"]
    with join_group("cpu", seconds) as rank:
        meshes = Meshes("cpu", seconds)
        peers = dist.new_group(timeout=timedelta(seconds=seconds))
        for fields, size, columns in payload["cases"]:
            spec = validate(fields, WorkloadSpec, "the matrix")
            known: list[Model] = []
            for column in columns:
                values = {"name": spec.name, "column": column}
                report(0.0, spec.name, values={**values, "cell": ""})
                error: Exception | None = None
                try:
                    if not known:
                        known.append(Model(load_task(spec, payload["trusted"], size=size), spec, rank))
                    cell = known[0].tried(column, meshes)
                except Exception as raised:
                    if is_lost_peer(raised):
                        raise
                    error, cell = raised, said_of(raised)
                _agree(peers, cell, error)
                del error
                gc.collect()
                report(0.0, spec.name, values={**values, "cell": cell})


def said_of(error: Exception) -> str:
    """The first sentence of an error, and whether it is a refusal of ours."""
    sentence = (str(error).splitlines() or [""])[0].partition(". ")[0].partition(" (its log is ")[0]
    is_ours = isinstance(error, PlanError | InputError)
    return f"refused: {sentence}" if is_ours else f"failed: {type(error).__name__}: {sentence}"


def _agree(peers: dist.ProcessGroup, cell: str, error: Exception | None = None) -> None:
    """Wait until both ranks have come to the end of a case, and to the same.

    Raises: what ended it on this rank alone, or that it did not end so on the other.
    """
    cells: list[Any] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(cells, cell, group=peers)
    except RuntimeError as lost:
        raise (error or lost) from None
    if len(set(cells)) > 1:
        raise error or RankFailure(f"ranks differ: {', '.join(cells)}")


class Model:
    """A model of the matrix with what one process says of it, in fp32 or as precisely as it goes."""

    def __init__(self, task: Task, spec: WorkloadSpec, rank: Rank) -> None:
        self.task, self.spec, self.rank = task, replace(spec, task=task.name), rank
        with torch.random.fork_rng(devices=[]):
            self.num_blocks = len(repeated_blocks(task.build()))
        self.workload = workload_of_task(self.spec, task, self.num_blocks + 2 if self.num_blocks else 1)
        self.samples = TaskSamples(task=task, spec=self.spec, seed=SEED)
        # Each rank works out one of the two.
        self.usual, self.silent = _gathered(one_process(task, silent=rank.rank == 1))

    @functools.cached_property
    def precise(self) -> Model:
        """The same model in double precision."""
        return Model(in_double(self.task), self.spec, self.rank)

    def tried(self, column: str, meshes: Meshes) -> str:
        """What comes of a column, in the words of the table.

        Raises: PlanError where its layouts are refused.
        """
        if column in ("recompute", "pipeline") and not self.num_blocks:
            raise PlanError("it has no repeated blocks")
        found = self._differences(column, meshes)
        cell = words(found, FIRST_FRACTION, LATER_FRACTION)
        if cell.startswith("equal") and max(found.values()) > FRACTION:
            with doubles():
                precise = words(self.precise._differences(column, meshes), FRACTION, FRACTION)
            cell = f"{cell}, in double {precise.removeprefix('equal ')}" if precise.startswith("equal") else precise
        return f"{cell}, dropout off" if column in SILENT and self.silent != self.usual else cell

    def _differences(self, column: str, meshes: Meshes) -> Differences:
        """By what the layouts of a column differ from one process."""
        wanted = self.silent if column in SILENT else self.usual
        largest: Differences = {}
        for plan in LAYOUTS[column]:
            if plan.pipeline_parallel > 1:
                plan = replace(plan, stage_bounds=(0, 1 + self.num_blocks // 2))
            for key, value in differences(self._steps(plan, meshes, column in SILENT), wanted).items():
                largest[key] = max(value, largest.get(key, 0.0))
        return largest

    def _steps(self, plan: Plan, meshes: Meshes, is_silent: bool) -> Steps:
        plan.check(len(self.workload.layers))
        if reason := refusal(plan, facts_of_workload(self.workload), self.task.size):
            raise PlanError(reason)
        check_task(plan, self.workload, "cpu")
        trainer = Trainer(plan, self.workload, self.rank, SEED, meshes.of(plan), is_silent=is_silent)
        own = first_steps(trainer, self.samples, STEPS)
        whole = [losses for losses in _gathered(own.losses) if losses[0] is not None]
        means = tuple(math.fsum(step) / len(whole) for step in zip(*whole, strict=True))
        return Steps(loss=means, norm=own.norms)


def differences(found: Steps, wanted: Steps) -> Differences:
    """Relative differences of losses and gradient norms, by kind and step."""
    return {
        (kind, step): abs(own - one) / (abs(one) or 1.0) if math.isfinite(own) else math.inf
        for kind in ("loss", "norm")
        for step, (own, one) in enumerate(zip(getattr(found, kind), getattr(wanted, kind), strict=True), start=1)
    }


def words(found: Differences, first: float, later: float) -> str:
    """Whether steps are equal, the first and later ones, with the largest difference."""
    for (kind, step), difference in found.items():
        if difference > (first if step == 1 else later):
            return f"differs {difference:.0e} in the {kind} of step {step}"
    return f"equal {max(found.values()):.0e}"


@contextlib.contextmanager
def doubles() -> Iterator[None]:
    """While entered, numbers that a module's own code makes are in double precision too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_double(task: Task) -> Task:
    """A task with its weights and what it learns from in double precision."""
    return replace(task, build=lambda: task.build().double(), collate=lambda samples: _doubled(task.collate(samples)))


def _doubled(value: Any) -> Any:
    return tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, value
    )


def _gathered(own: Any) -> list[Any]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone
