"""Every layout trains the same model: its losses and weights against a plain training loop on the whole batch.

The loop knows nothing of the executor: no micro-batches, no recorder, no wrapping; it shares the layers and the data.
"""

import functools
import itertools
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from executor.data import default_text, load_text
from executor.parallelize import LEARNING_RATE
from planner.plan import Plan
from profiles.launcher import launch
from profiles.workloads import load_workload
from tests.parity_entries import SPECS
from tests.plan_builders import GLOBAL_BATCH, NUM_LAYERS, NUM_STEPS, SEED, SEQUENCE

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
EVEN, UNEVEN = (0, 3), (0, 2)


@functools.cache
def plain_training(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Losses before each step, and the sum of squares of every parameter after the last."""
    workload = load_workload(SPECS[name])
    model = workload.build(0, NUM_LAYERS, SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    text = load_text(default_text(), SEQUENCE, SEED)
    losses = []
    for step in range(NUM_STEPS):
        inputs, targets = text.batch(step, GLOBAL_BATCH)
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return tuple(losses), tuple(float(p.detach().double().pow(2).sum()) for p in model.parameters())


def layouts(num_ranks: int) -> list[Plan]:
    """All products of degrees, schedules and recomputation, at least two micro-batches each."""
    plans = []
    for data, tensor, pipeline in itertools.product((1, 2), repeat=3):
        if data * tensor * pipeline != num_ranks:
            continue
        schedules = ("gpipe", "1f1b") if pipeline > 1 else ("none",)
        for schedule, recompute in itertools.product(schedules, ("none", "full")):
            size = 4 if pipeline == 1 and data == 1 else 2
            plans.append(
                Plan(
                    data_parallel=data,
                    tensor_parallel=tensor,
                    pipeline_parallel=pipeline,
                    schedule=schedule,
                    stage_bounds=EVEN if pipeline > 1 else (0,),
                    micro_batch_size=size,
                    num_microbatches=GLOBAL_BATCH // data // size,
                    recompute=recompute,
                )
            )
    return plans


TWO_RANKS = [
    *layouts(2),
    Plan(pipeline_parallel=2, schedule="1f1b", stage_bounds=UNEVEN, micro_batch_size=2, num_microbatches=4),
    Plan(pipeline_parallel=2, schedule="gpipe", stage_bounds=(0, 5), micro_batch_size=8, num_microbatches=1),
    Plan(data_parallel=2, micro_batch_size=1, num_microbatches=4),
    Plan(data_parallel=2, micro_batch_size=4, precision="bf16"),
    Plan(tensor_parallel=2, micro_batch_size=4, num_microbatches=2, precision="bf16", recompute="full"),
    Plan(
        pipeline_parallel=2,
        schedule="1f1b",
        stage_bounds=EVEN,
        micro_batch_size=2,
        num_microbatches=4,
        precision="bf16",
    ),
]
FOUR_RANKS = [
    *layouts(4),
    Plan(
        data_parallel=2,
        tensor_parallel=2,
        axis_order=("data", "tensor", "pipeline"),
        micro_batch_size=2,
        num_microbatches=2,
    ),
    Plan(
        data_parallel=2,
        pipeline_parallel=2,
        axis_order=("pipeline", "data", "tensor"),
        schedule="1f1b",
        stage_bounds=UNEVEN,
        micro_batch_size=1,
        num_microbatches=4,
    ),
]


def check(name: str, plan: Plan, ranks: list[dict[str, Any]]) -> None:
    expected_losses, expected_squares = plain_training(name)
    last = [rank for rank in ranks if rank["losses"][0] is not None]
    assert {rank["pipeline"] for rank in last} == {plan.pipeline_parallel - 1}
    replicas = [rank for rank in last if rank["tensor"] == 0]
    assert len(replicas) == plan.data_parallel
    losses = [sum(values) / len(values) for values in zip(*(rank["losses"] for rank in replicas), strict=True)]
    assert losses == pytest.approx(expected_losses, rel=TOLERANCE[plan.precision]), plan.id
    if plan.tensor_parallel == 1 and plan.precision == "fp32":
        for replica in range(plan.data_parallel):
            stages = sorted((rank for rank in ranks if rank["data"] == replica), key=lambda rank: rank["pipeline"])
            squares = [square for stage in stages for square in stage["squares"]]
            assert squares == pytest.approx(expected_squares, rel=1e-4, abs=1e-6), plan.id
    for rank in ranks:
        done = rank["actions"]
        for action in "FB":
            assert sorted(m for what, m in done if what == action) == list(range(plan.num_microbatches)), plan.id
        assert sum(what == "optimizer" for what, _ in done) == 1
        # Gradients are sent once per step, not once per micro-batch: the tiny model has one bucket.
        assert sum(what == "all_reduce" for what, _ in done) == (plan.data_parallel > 1), plan.id


@pytest.mark.gloo
@pytest.mark.parametrize(("num_ranks", "plans"), [(2, TWO_RANKS), (4, FOUR_RANKS)], ids=["2 ranks", "4 ranks"])
def test_layouts_train_the_same_model(num_ranks: int, plans: list[Plan]) -> None:
    # The models differ in how their linears are split; what else a plan may ask for is tried on one of them.
    plain = [plan for plan in plans if plan.recompute == "none" and plan.precision == "fp32"]
    cases = [("llama", plan) for plan in plans] + [("gpt2", plan) for plan in plain]
    results = launch("tests.parity_entries:run_plans", [(name, asdict(plan)) for name, plan in cases], num_ranks, "cpu")
    for (name, plan), ranks in zip(cases, results, strict=True):
        check(name, plan, ranks)
