"""What the ranks of the tests of tasks run: real modules of transformers, as one process and as a plan."""

import gc
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from executor.mesh import Meshes
from executor.run.checkpoint import progress_of, restore
from executor.run.own_data import TaskSamples
from executor.run.reference import check_losses, first_steps, reference_of
from executor.run.saving import save
from executor.run.subject import workload_of_task
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.models.profile import WorkloadSpec
from profiles.ranks.rank import Rank, join_group
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.task_loading import load_task
from profiles.workloads.workload import Workload
from tests.matrix.__main__ import OWN, models
from tests.matrix.architectures import ARCHITECTURES, MIXTURE

SEED = 3
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
# Mixtures beside those of the matrix: with biases, in a class of their own, with another head.
MIXTURES = {
    name: WorkloadSpec(kind="transformers", name=name, config={"architectures": [architecture], **config})
    for name, architecture, config in (
        ("olmoe", "OlmoeForCausalLM", {"model_type": "olmoe", "num_experts": 4, **MIXTURE}),
        ("granitemoe", "GraniteMoeForCausalLM", {"model_type": "granitemoe", **MIXTURE}),
        ("phimoe", "PhimoeForCausalLM", {"model_type": "phimoe", **MIXTURE}),
        ("mixtral_classes", "MixtralForSequenceClassification", {"model_type": "mixtral", **MIXTURE}),
    )
}
MODELS = {spec.name: (spec, size) for spec, size in models()} | {name: (own, 32) for name, own in MIXTURES.items()}


def subject(name: str) -> tuple[Workload, TaskSamples]:
    """A tiny model of transformers, or a user's module, as it is trained."""
    spec, size = MODELS[name]
    task = load_task(spec, (OWN,), size=size)
    with torch.random.fork_rng(devices=[]):
        blocks = repeated_blocks(task.build())
    spec = replace(spec, task=task.name)
    workload = workload_of_task(spec, task, len(blocks) + 2 if blocks else 1)
    return workload, TaskSamples(task=task, spec=spec, seed=SEED)


def train(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Per model and plan, its check, or what went wrong; stages begin in the middle."""
    return _trained(payload, in_middle=True)


def train_as_planned(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """The same, where stages begin as the plans say."""
    return _trained(payload, in_middle=False)


def _trained(payload: dict[str, Any], *, in_middle: bool) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        for name, plans in payload["cases"]:
            given = [validate(fields, Plan, "the test") for fields in plans]
            results += _of_model(name, given, rank, meshes, in_middle=in_middle)
    return results


def _of_model(name: str, plans: list[Plan], rank: Rank, meshes: Meshes, *, in_middle: bool) -> list[dict[str, Any]]:
    workload, samples = subject(name)
    if in_middle:
        middle = (0, 1 + (len(workload.layers) - 2) // 2)
        plans = [plan if plan.pipeline_parallel == 1 else replace(plan, stage_bounds=middle) for plan in plans]
    reference = reference_of(workload, plans, samples, rank, 0)
    found = []
    for plan in plans:
        try:
            trainer = Trainer(plan, workload, rank, SEED, meshes.of(plan), is_silent=True)
            checked = first_steps(trainer, samples, len(reference.losses))
            everyone: list[Any] = [None] * rank.num_ranks
            dist.all_gather_object(everyone, checked.losses)
            whole = [losses for losses in everyone if losses[0] is not None]
            losses = [sum(values) / len(values) for values in zip(*whole, strict=True)]
            check = check_losses(plan, losses, checked.norms, reference)
            found.append(
                {
                    "case": f"{name} {plan.id}",
                    "status": check.status,
                    "loss": check.largest_difference_fraction,
                    "norm": check.largest_norm_difference_fraction,
                    "reference": reference.losses,
                    "norms": reference.norms,
                    "reason": check.reason,
                    "silent": reference.is_silent,
                }
            )
        except Exception as error:
            # Both ranks fail alike, and the next case may not.
            words = "".join(traceback.format_exception(error)[-6:])
            found.append({"case": f"{name} {plan.id}", "status": "crashed", "reason": words})
        trainer = None
        gc.collect()
    return found


def save_and_go_on(payload: dict[str, Any]) -> list[list[list[float]]]:
    """Per pair of plans, mean losses of the first behind where it is saved, and of the second from there."""
    workload, samples = subject(payload["model"])
    found = []
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        for number, pair in enumerate(payload["pairs"]):
            first, second = (validate(fields, Plan, "the test") for fields in pair)
            trainer = Trainer(first, workload, rank, SEED, meshes.of(first), is_silent=True)
            _go_on(trainer, samples, 0)
            path = save(Path(payload["folder"]) / str(number), progress_of(first, workload, SEED, 1), trainer)
            losses = [_go_on(trainer, samples, 1)]
            # Another seed: what is not restored would show.
            trainer = Trainer(second, workload, rank, SEED + 1, meshes.of(second), is_silent=True)
            restore(path, trainer)
            losses.append(_go_on(trainer, samples, 1))
            found.append(losses)
    return found


def _go_on(trainer: Trainer, samples: TaskSamples, first: int) -> list[float]:
    """Mean losses of the ranks in two steps."""
    means = []
    for step in (first, first + 1):
        loss, _ = trainer.step(*samples.batch(step, trainer.plan.global_batch_size))
        assert loss is not None
        total = loss.detach().clone()
        dist.all_reduce(total)
        means.append(float(total) / dist.get_world_size())
    return means
