"""What the ranks of the training benchmark run: our loop and one written by hand, of the same model, in turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from executor.mesh import Meshes
from executor.run.batches import default_text, load_text
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.library import load_model
from profiles.ranks.rank import Rank, join_group
from profiles.workloads.loading import load_workload

MODEL, SEQUENCE, SEED = "llama-26m", 128, 0
ROUNDS, STEPS_PER_ROUND, WARMUP_STEPS = 12, 2, 4
Step = Callable[[Tensor, Tensor], float]


def against_by_hand(payload: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of our steps and of the hand-written ones, block by block, on the slowest rank; and of our notes."""
    plan = validate(payload, Plan, "the benchmark")
    text = load_text(default_text(), SEQUENCE, SEED)
    with join_group("cpu") as rank:
        trainer = Trainer(plan, load_workload(load_model(MODEL).workload), rank, SEED, Meshes("cpu").of(plan))

        def ours(inputs: Tensor, targets: Tensor) -> float:
            loss, trace = trainer.step(inputs, targets)
            notes.append(len(trace.actions))
            return float(loss)  # type: ignore[arg-type]

        notes: list[int] = []
        loops = {"ours": ours, "by hand": _by_hand(plan, rank)}
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        losses: dict[str, list[float]] = {name: [] for name in loops}
        step = 0
        for turn in range(ROUNDS + WARMUP_STEPS):
            for name, loop in loops.items():
                gc.collect()
                dist.barrier()
                start = time.perf_counter()
                for offset in range(STEPS_PER_ROUND):
                    losses[name].append(loop(*text.batch(step + offset, plan.global_batch_size)))
                if turn >= WARMUP_STEPS:
                    seconds[name].append((time.perf_counter() - start) / STEPS_PER_ROUND)
            step += STEPS_PER_ROUND
        assert all(abs(a - b) < 1e-3 for a, b in zip(losses["ours"], losses["by hand"], strict=True)), losses
        everyone: list[Any] = [None] * rank.num_ranks
        dist.all_gather_object(everyone, seconds)
        slowest = {name: [max(each) for each in zip(*(one[name] for one in everyone), strict=True)] for name in seconds}
        return {**slowest, "marks": [statistics.median(notes) * _seconds_per_mark(trainer)]}


def _by_hand(plan: Plan, rank: Rank) -> Step:
    """The loop that a person would write for DDP, or for FSDP2 layer by layer."""
    workload = load_workload(load_model(MODEL).workload)
    model: nn.Module = workload.build(0, len(workload.layers), SEED)
    if plan.zero_stage == 3:
        for layer in model:  # type: ignore[attr-defined]
            fully_shard(layer)
        fully_shard(model)
    else:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    size = plan.micro_batch_size

    def step(inputs: Tensor, targets: Tensor) -> float:
        mine = slice(rank.rank * size, (rank.rank + 1) * size)
        loss = workload.loss(model(inputs[mine]), targets[mine])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _seconds_per_mark(trainer: Trainer) -> float:
    """What one note of an action costs."""
    recorder, count = trainer.recorder, 10000
    recorder.begin()
    start = time.perf_counter()
    for index in range(count):
        recorder.note("F", index, recorder.now())
    recorder.finish()
    return (time.perf_counter() - start) / count
