"""Every layout trains the same model: its losses and weights against a plain training loop on the whole batch.

The loop knows nothing of the executor: no micro-batches, no recorder, no wrapping; it shares the layers and the data.
"""

import functools
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchao.float8 import convert_to_float8_training

from executor.axes.optimizer import LEARNING_RATE
from executor.run.batches import default_text, load_text
from planner.plans import Plan, stages_of
from profiles.models.profile import MIXED, SCALED
from profiles.ranks.launcher import launch
from profiles.workloads.loading import load_workload
from tests import parity_cases
from tests.parity_cases import Case, eight_ranks, four_ranks, make_plan, two_ranks
from tests.parity_entries import SPECS
from tests.plan_builders import GLOBAL_BATCH, NUM_LAYERS, NUM_STEPS, SEED, SEQUENCE

# Of losses, relative; of parameters, in units of the farthest that AdamW can have moved them. bf16 is compared with a
# single device in bf16: only the order of sums differs, but activations keep eight bits.
LOSS_TOLERANCE = {"fp32": 1e-5, "tf32": 1e-5, "bf16": 1e-3, "fp16": 1e-3, "fp8": 1e-3}
PARAMETER_TOLERANCE = {"fp32": 2e-3, "tf32": 2e-3, "bf16": 0.1, "fp16": 0.1, "fp8": 0.25}


@functools.cache
def plain_training(name: str, precision: str) -> tuple[tuple[float, ...], dict[str, torch.Tensor]]:
    """Losses before each step, and every parameter after the last by its path."""
    model = load_workload(SPECS[name]).build(0, NUM_LAYERS, SEED)
    if precision == "fp8":
        for index in range(NUM_LAYERS - 1):
            convert_to_float8_training(model[index])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == SCALED)
    low = torch.float16 if precision == SCALED else torch.bfloat16
    text = load_text(default_text(), SEQUENCE, SEED)
    losses = []
    for step in range(NUM_STEPS):
        inputs, targets = text.batch(step, GLOBAL_BATCH)
        with torch.autocast("cpu", low, enabled=precision in MIXED):
            logits = model(inputs)
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    return tuple(losses), {path: parameter.detach() for path, parameter in model.named_parameters()}


def run(cases: list[Case], num_ranks: int, folder: Path) -> None:
    """Start the ranks once, and check every case."""
    references = {}
    for name, precision in sorted({(name, plan.precision) for name, plan in cases}):
        path = folder / f"{name}-{precision}.pt"
        torch.save(plain_training(name, precision)[1], path)
        references[f"{name} {precision}"] = str(path)
    payload = {"cases": [(name, asdict(plan)) for name, plan in cases], "references": references}
    results = launch("tests.parity_entries:run_all", payload, num_ranks, "cpu")
    for (name, plan), ranks in zip(cases, results, strict=True):
        check(name, plan, ranks)


def check(name: str, plan: Plan, ranks: list[dict[str, Any]]) -> None:
    expected_losses, expected = plain_training(name, plan.precision)
    what = f"{name} {plan.id}"
    last = [rank for rank in ranks if rank["losses"][0] is not None]
    for rank in last:
        assert plan.num_stages - 1 in stages_of(plan, rank["place"]["pipeline"]), what
    replicas = [rank for rank in last if rank["place"]["tensor"] == 0]
    assert len(replicas) == plan.data_parallel * plan.context_parallel, what
    losses = [sum(values) / len(values) for values in zip(*(rank["losses"] for rank in replicas), strict=True)]
    assert losses == pytest.approx(expected_losses, rel=LOSS_TOLERANCE[plan.precision]), what
    assert {path for rank in ranks for path in rank["deviations"]} == set(expected), what
    for rank in ranks:
        assert all(value <= PARAMETER_TOLERANCE[plan.precision] for value in rank["deviations"].values()), (
            what,
            max(rank["deviations"].items(), key=lambda item: item[1]),
        )
        check_actions(plan, rank, what)


def check_actions(plan: Plan, rank: dict[str, Any], what: str) -> None:
    """Each stage goes forward and backward once per micro-batch; gradients are sent once per step."""
    done = Counter((action, microbatch, stage) for action, microbatch, stage in rank["actions"])
    stages = stages_of(plan, rank["place"]["pipeline"]) if plan.pipeline_parallel > 1 else (-1,)
    for stage in stages:
        for microbatch in range(plan.num_microbatches):
            assert done[("F", microbatch, stage)] == done[("B", microbatch, stage)] == 1, what
            assert done[("W", microbatch, stage)] <= plan.rules.splits_backward, what
    # Gradients are divided by their scale first.
    assert done[("optimizer", -1, -1)] == 1 + (plan.precision == SCALED), what
    has_copies = plan.data_parallel * plan.context_parallel > 1
    # The tiny models have one bucket per stage; schedules with split backward passes average all stages together.
    messages = 1 if plan.rules.splits_backward else len(stages)
    assert done[("all_reduce", -1, -1)] == (messages if has_copies and plan.zero_stage < 2 else 0), what


def test_every_choice_of_a_plan_is_in_the_table() -> None:
    table = [*two_ranks(complete=False), *four_ranks(complete=False)]
    plain = Plan()
    for field in fields(Plan):
        if field.name in parity_cases.DERIVED | parity_cases.ELSEWHERE | parity_cases.ONLY_PLANNED:
            continue
        values = {getattr(plan, field.name) for _, plan in table}
        assert values - {getattr(plain, field.name)}, f"no case chooses another {field.name}"


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_axes_alone_train_the_same_model(tmp_path: Path) -> None:
    run(two_ranks(complete=False), 2, tmp_path)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_pairs_of_axes_train_the_same_model(tmp_path: Path) -> None:
    run(four_ranks(complete=False), 4, tmp_path)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_axes_with_all_free_choices_train_the_same_model(tmp_path: Path) -> None:
    run(two_ranks(complete=True), 2, tmp_path)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_all_pairs_of_axes_train_the_same_model(tmp_path: Path) -> None:
    run(four_ranks(complete=True), 4, tmp_path)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_three_axes_train_the_same_model(tmp_path: Path) -> None:
    cases = eight_ranks()
    assert len(cases) >= 6
    run(cases, 8, tmp_path)


@pytest.mark.gloo
@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [{"data_parallel": 2}, {"data_parallel": 2, "zero_stage": 3}, {"tensor_parallel": 2}]
)
def test_compiled_blocks_train_the_same_model(layout: dict[str, Any], tmp_path: Path) -> None:
    run([("llama", make_plan(layout, {"compiled": True}))], 2, tmp_path)
