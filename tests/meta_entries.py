"""Models on the meta device under `executor.apply`, as the ranks of its tests build and train them."""

import contextlib
import gc
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import executor
from executor.mesh import Meshes
from executor.observe.live_tensors import LiveTensors
from executor.run.subject import workload_of_task
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.errors import TrainwrightError
from profiles.ranks.rank import join_group
from profiles.workloads.meta_values import MetaValues
from profiles.workloads.randomness import silence
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.task_loading import load_task
from tests.apply_entries import BY_NAME, MOST, RATE, SAMPLES, SEED, STEPS, batch_of, task_of


def skeleton(name: str) -> nn.Module:
    """A model of the matrix on the meta device."""
    with torch.device("meta"):
        module = task_of(name).build()
    silence(module)
    return module.train()


def initialised(name: str) -> nn.Module:
    """The same in one process, with the weights that it is to begin with."""
    module = MetaValues(skeleton(name), SEED, torch.device("cpu")).whole()
    silence(module)
    return module.train()


def sizes(name: str) -> dict[str, int]:
    """Bytes of a model: all of it, its largest tensor and what is made at once of it, and a batch beside."""
    module = skeleton(name)
    blocks = [sum(own.nbytes for own in block.parameters()) for block in repeated_blocks(module).values()]
    single = [own.nbytes for own in module.parameters()]
    beside = sum(own.nbytes for own in batch_of(task_of(name), 0).values())
    return {"whole": sum(single), "tensor": max(single), "block": max(*blocks, *single), "beside": beside}


def loop(case: dict[str, Any]) -> dict[str, Any]:
    """Build from meta, with the peak of that, and train."""
    name, plan = case["name"], validate(case["plan"], Plan, "the test")
    task, module = task_of(name), skeleton(name)
    weights = case["weights"] or None
    example = batch_of(task, 0, 0, plan.data_parallel)
    with LiveTensors() if case["counts"] else contextlib.nullcontext() as live:
        job = executor.apply(plan, module, example=example, weights=weights, device="cpu", seed=SEED)
    optimizer = job.optimizer(torch.optim.AdamW, lr=RATE)
    losses, norms = [], []
    for step in range(STEPS):
        losses.append(float(job.step(batch_of(task, step, job.replica, job.num_replicas))))
        norms.append(job.clip_(MOST))
        optimizer.step()
    return {"losses": losses, "norms": norms, "peak": live.peak_bytes if live else 0}


def loops(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Per case, what came of it on the rank that needed most, or the sentence that it ended in."""
    found = []
    for case in payload["cases"]:
        try:
            found.append(loop(case))
        except TrainwrightError as error:
            found.append({"error": str(error)})
        gc.collect()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    for own, others in zip(found, zip(*everyone, strict=True), strict=True):
        own["peak"] = max(other.get("peak", 0) for other in others)
        own["errors"] = [other["error"] for other in others if "error" in other]
    dist.barrier()
    dist.destroy_process_group()
    return found


def tasks(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Per plan, what comes of a task whose weights lie in a folder, as `execute` builds and trains it."""
    spec = replace(BY_NAME["llama"].spec, weights=payload["weights"])
    task = load_task(spec, size=BY_NAME["llama"].size)
    workload = workload_of_task(spec, task, payload["num_layers"])
    found = []
    with join_group("cpu") as rank:
        meshes = Meshes("cpu", 60.0)
        for fields in payload["plans"]:
            plan = validate(fields, Plan, "the test")
            with LiveTensors() as live:
                trainer = Trainer(plan, workload, rank, SEED, meshes.of(plan))
            losses: list[Any] = [None] * rank.num_ranks
            own = [trainer.step(task.batches(step, SAMPLES))[0] for step in range(2)]
            dist.all_gather_object(losses, [float(loss) for loss in own if loss is not None])
            means = [sum(step) / len(step) for step in zip(*losses, strict=True)]
            found.append({"losses": means, "peak": live.peak_bytes})
            del trainer
            gc.collect()
    return found
