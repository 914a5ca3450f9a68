"""Loops that users would write around `executor.apply`, as the ranks of its tests run them."""

import gc
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import executor
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.errors import TrainwrightError
from profiles.workloads.randomness import silence
from profiles.workloads.task import Batch, Task
from profiles.workloads.task_loading import load_task
from tests.matrix.architectures import ARCHITECTURES

SEED, RATE, MOST, STEPS, SAMPLES = 3, 1e-2, 0.5, 4, 8
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def task_of(name: str) -> Task:
    """The task of a tiny model of transformers."""
    return load_task(BY_NAME[name].spec, size=BY_NAME[name].size)


def module_of(task: Task) -> nn.Module:
    """Its module without dropout, with the same weights everywhere."""
    torch.manual_seed(SEED)
    module = task.build()
    silence(module)
    return module.train()


def options_of(name: str, parameter: nn.Parameter) -> dict[str, Any]:
    """No weight decay for what has one dimension, as usual."""
    return {"weight_decay": 0.0} if parameter.dim() < 2 else {}


def batch_of(task: Task, step: int, replica: int = 0, num_replicas: int = 1) -> Batch:
    """A replica's samples of a step."""
    own = SAMPLES // num_replicas
    return task.collate(task.batches(step, SAMPLES)[replica * own : (replica + 1) * own])


def schedule_of(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """A rate that falls."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def loop(name: str, plan: Plan, first: int, last: int, folder: Path, exported: Path | None) -> dict[str, Any]:
    """Train from one step to another, going on from `folder` and saving there."""
    task = task_of(name)
    module = module_of(task)
    job = executor.apply(plan, module, example=batch_of(task, 0, 0, plan.data_parallel), device="cpu")
    optimizer = job.optimizer(torch.optim.AdamW, groups=options_of, lr=RATE)
    schedule = schedule_of(optimizer)
    kept = job.load(folder)
    if kept:
        # Another layout has other groups, and rates of as many.
        schedule.last_epoch = kept["steps"]
    assert job.num_steps == first
    job.measure(2)
    losses, norms = [], []
    for step in range(first, last):
        loss = job.step(batch_of(task, step, job.replica, job.num_replicas))
        norms.append(job.clip_(MOST))
        optimizer.step()
        schedule.step()
        losses.append(float(loss))
    job.save(folder, {"steps": schedule.last_epoch})
    if exported is not None:
        job.export(exported)
    return {"losses": losses, "norms": norms, "measured": job.measured().step_seconds, "text": str(job.measured())}


def loops(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Per case, what came of the loop, or the sentence that it ended in."""
    found = []
    for case in payload["cases"]:
        plan = validate(case["plan"], Plan, "the test")
        folder, exported = Path(case["folder"]), Path(case["exported"]) if case["exported"] else None
        try:
            found.append(loop(case["name"], plan, case["first"], case["last"], folder, exported))
        except TrainwrightError as error:
            found.append({"error": str(error)})
        gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    return found


def apply_apart(name: str) -> list[str]:
    """What applying a plan says where each rank builds its module from a seed of its own, and where from the same."""
    said = []
    for apart in (1, 0):
        task = task_of(name)
        torch.manual_seed(SEED + apart * int(os.environ["RANK"]))
        module = task.build()
        try:
            executor.apply(Plan(data_parallel=2, micro_batch_size=2), module, device="cpu")
            said.append("")
        except TrainwrightError as error:
            said.append(str(error))
    dist.barrier()
    dist.destroy_process_group()
    return said
