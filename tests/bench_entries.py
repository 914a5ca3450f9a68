"""What the ranks of the training benchmark run: our loops and some written by hand, of the same model, in turns."""

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

import executor
from executor.mesh import Meshes
from executor.rank_model import RankModel
from executor.run.batches import Text, default_text, load_text
from executor.train.job import TrainedPlan
from executor.train.loop import Loop
from executor.train.optimizers import Rates
from executor.train.rates import rate_factor
from executor.train.samples import OfReplica, Share, Source
from executor.train.settings import OptimizerSettings, ScheduleSettings, TrainSettings
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.library import load_model
from profiles.ranks.rank import Rank, join_group
from profiles.workloads.loading import load_workload
from tests.plan_builders import make_plan_file

MODEL, SEQUENCE, SEED = "llama-26m", 128, 0
ROUNDS, STEPS_PER_ROUND, WARMUP_STEPS = 12, 2, 4
NUM_STEPS, NUM_ALIKE, MOST, COSINE = 1000, 16, 1.0, ScheduleSettings(name="cosine", warmup_steps=10)
Step = Callable[[Tensor, Tensor], float]


def against_by_hand(payload: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of our steps and of the hand-written ones, block by block, on the slowest rank; and of our notes.

    "ours" is the executor's, "applied" `executor.apply` in a loop of a user's, "trained" that of `execute --train`,
    which clips, has a schedule and logs as "by hand, logged" does.
    """
    plan = validate(payload, Plan, "the benchmark")
    text = load_text(default_text(), SEQUENCE, SEED)
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        trainer = Trainer(plan, load_workload(load_model(MODEL).workload), rank, SEED, meshes.of(plan))

        def ours(inputs: Tensor, targets: Tensor) -> float:
            loss, trace = trainer.step(inputs, targets)
            notes.append(len(trace.actions))
            return float(loss)  # type: ignore[arg-type]

        notes: list[int] = []
        loops = {
            "ours": ours,
            "applied": _applied(plan, rank),
            "by hand": _by_hand(plan, rank),
            "trained": _trained(plan, rank, meshes, text),
            "by hand, logged": _by_hand(plan, rank, is_logged=True),
        }
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
        # torch clips by a norm and a millionth, of which AdamW makes more with every step.
        logged = zip(losses["trained"][:NUM_ALIKE], losses["by hand, logged"][:NUM_ALIKE], strict=True)
        assert all(abs(a - b) < 1e-3 for a, b in logged), losses
        everyone: list[Any] = [None] * rank.num_ranks
        dist.all_gather_object(everyone, seconds)
        slowest = {name: [max(each) for each in zip(*(one[name] for one in everyone), strict=True)] for name in seconds}
        return {**slowest, "marks": [statistics.median(notes) * _seconds_per_mark(trainer)]}


def _applied(plan: Plan, rank: Rank) -> Step:
    """A user's loop around `executor.apply`."""
    workload = load_workload(load_model(MODEL).workload)
    model = workload.build(0, len(workload.layers), SEED)
    job = executor.apply(
        plan, model, loss=lambda module, batch: workload.loss(module(batch["inputs"]), batch["targets"]), device="cpu"
    )
    optimizer = job.optimizer(torch.optim.AdamW, lr=1e-3, fused=True)
    mine = slice(job.replica * job.samples_per_step, (job.replica + 1) * job.samples_per_step)

    def step(inputs: Tensor, targets: Tensor) -> float:
        loss = job.step({"inputs": inputs[mine], "targets": targets[mine]})
        optimizer.step()
        return float(loss)

    return step


def _trained(plan: Plan, rank: Rank, meshes: Meshes, text: Text) -> Step:
    """The loop of `execute --train`, a step at a time; what it is given it reads itself."""
    settings = TrainSettings(max_steps=NUM_STEPS, optimizer=OptimizerSettings(lr=1e-3, clip_norm=MOST), schedule=COSINE)
    workload = load_workload(load_model(MODEL).workload)
    file = make_plan_file(plan, spec=workload.spec, sequence=SEQUENCE)
    job = TrainedPlan(file.candidates[0], workload, RankModel(plan, workload, rank, SEED, meshes.of(plan)), rank, SEED)
    optimizer = job.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.0, fused=True)
    count = job.samples_per_step

    def of_step(step: int, first: int, number: int, size: int) -> tuple[Tensor, ...]:
        return tuple(own[first : first + number] for own in text.batch(step, size))

    share = Share(size=plan.global_batch_size, first=job.replica * count, count=count)
    loop = Loop(
        job=job,
        file=file,
        settings=settings,
        rates=Rates(optimizer, lambda step: rate_factor(COSINE, step, NUM_STEPS)),
        train=OfReplica(Source(of_step=of_step), share),
        evaluated=None,
        checkpoints=None,
        timeout_seconds=600.0,
        predicted_bytes=0.0,
        say=lambda values: None,
    )

    def step(inputs: Tensor, targets: Tensor) -> float:
        loop.run(job.num_steps + 1)
        # Read at once, as the loop by hand does, where it would be read a step later.
        loop.read()
        return loop.losses[-1]

    return step


def _by_hand(plan: Plan, rank: Rank, *, is_logged: bool = False) -> Step:
    """The loop that a person would write for DDP, or for FSDP2 layer by layer.

    One that is logged clips gradients, has a schedule, and tells the mean of all ranks' losses.
    """
    workload = load_workload(load_model(MODEL).workload)
    model: nn.Module = workload.build(0, len(workload.layers), SEED)
    if plan.zero_stage == 3:
        for layer in model:  # type: ignore[attr-defined]
            fully_shard(layer)
        fully_shard(model)
    else:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, weight_decay=0.0 if is_logged else 0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: rate_factor(COSINE, at, NUM_STEPS) if is_logged else 1.0
    )
    size = plan.micro_batch_size

    def step(inputs: Tensor, targets: Tensor) -> float:
        mine = slice(rank.rank * size, (rank.rank + 1) * size)
        loss = workload.loss(model(inputs[mine]), targets[mine])
        loss.backward()
        if is_logged:
            nn.utils.clip_grad_norm_(model.parameters(), MOST)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        told = loss.detach()
        if is_logged:
            schedule.step()
            dist.all_reduce(told)
            told /= rank.num_ranks
        return float(told)

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
