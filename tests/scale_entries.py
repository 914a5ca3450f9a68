"""Loops in fp16 around `executor.apply`, as the ranks of its tests run them."""

import gc
import itertools
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import executor
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.workloads.task import Batch
from tests.apply_entries import batch_of, module_of, task_of

STEPS, INTERVAL, RATE, MOST, FIRST = 6, 2, 1e-2, 0.5, 2.0**16
# In this step a sample's gradients are more than fp16 holds, whatever they are scaled by.
OVERFLOWS = 3


def scaled_loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    """The module's loss; where the batch says so, such that its gradient overflows in fp16 and it does not itself."""
    batch = dict(batch)
    bump = batch.pop("bump").max()
    loss: torch.Tensor = module(**batch).loss
    return loss + (loss - loss.detach()) * bump


def bumped(name: str, step: int, replica: int, num_replicas: int) -> Batch:
    """A replica's batch of a step; in one of them the last sample of all overflows."""
    batch = dict(batch_of(task_of(name), step, replica, num_replicas))
    count = len(next(iter(batch.values())))
    batch["bump"] = torch.zeros(count)
    if step == OVERFLOWS and replica == num_replicas - 1:
        batch["bump"][-1] = 1e20
    return batch


def loop(name: str, plan: Plan, first: int, last: int, folder: Path) -> dict[str, Any]:
    """Train from one step to another, going on from `folder` and saving there."""
    module = module_of(task_of(name))
    job = executor.apply(plan, module, loss=scaled_loss, example=bumped(name, 0, 0, plan.data_parallel), device="cpu")
    assert job.scale is not None
    job.scale.scale, job.scale.growth_interval = FIRST, INTERVAL
    optimizer = job.optimizer(torch.optim.AdamW, lr=RATE)
    job.load(folder)
    losses, norms, scales = [], [], []
    for step in range(first, last):
        losses.append(float(job.step(bumped(name, step, job.replica, job.num_replicas))))
        norms.append(job.clip_(MOST))
        optimizer.step()
        scales.append(job.scale.scale)
    job.save(folder)
    evaluated = float(job.evaluate(bumped(name, 0, job.replica, job.num_replicas)))
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (scales, job.scale.num_skipped, job.scale.num_good))
    assert everyone == everyone[:1] * len(everyone), "ranks skip alike"
    return {
        "losses": losses, "norms": norms, "scales": scales, "skipped": job.scale.num_skipped, "evaluated": evaluated,
    }  # fmt: skip


def loops(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Per case, what came of the loop, halved by a resume in the next layout."""
    found = []
    plans = [validate(plan, Plan, "the test") for plan in payload["plans"]]
    for number, (plan, after) in enumerate(itertools.pairwise([*plans, plans[0]])):
        folder = Path(payload["folder"], str(number))
        begun = loop(payload["name"], plan, 0, payload["stop"], folder)
        gc.collect()
        ended = loop(payload["name"], after, payload["stop"], STEPS, folder)
        gc.collect()
        found.append({key: begun[key] + ended[key] for key in ("losses", "norms", "scales")} | {
            "skipped": ended["skipped"], "evaluated": ended["evaluated"],
        })  # fmt: skip
    dist.barrier()
    dist.destroy_process_group()
    return found
