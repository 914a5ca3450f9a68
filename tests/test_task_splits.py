"""What is offered of tensor parallelism of tasks is what the executor does: the same parts, products and sums."""

from __future__ import annotations

import functools
import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from executor.axes.task_part import seeded_module, split_of_task
from executor.legality import check_plan
from executor.run.checks import check_task, facts_of_workload
from executor.run.subject import workload_of_task
from planner.cost.adapted import common_on_rank
from planner.expected_counts import volumes
from planner.legality import refusal
from planner.model_facts import facts_of
from planner.plans import Plan
from planner.space.layouts import Options, legal_layouts
from planner.space.to_plans import jobs_at
from planner.space.traced_setting import traced_setting
from profiles.machines.devices import load_device
from profiles.models.operators import PHASES, Polynomial, evaluate
from profiles.models.profile import ModelProfile, WorkloadSpec
from profiles.models.splitting import DEGREES, SEVERAL, over_degrees
from profiles.ranks.launcher import launch
from profiles.tracing import task_splits
from profiles.tracing.task_trace import trace_task
from profiles.workloads.split_ranks import Ranks, run_as_rank
from profiles.workloads.task import Task
from profiles.workloads.task_loading import load_task
from profiles.workloads.tensor_splits import COLUMNS, COLUMNS_INSIDE, ROWS, Split
from tests.matrix.architectures import ARCHITECTURES
from tests.test_task_cuts import case, found
from tests.traced import profile_of

NAMES = ("bert_qa", "t5", "gpt2")
SAMPLES = 4


@functools.cache
def with_heads(name: str, heads: int) -> tuple[WorkloadSpec, Task, ModelProfile]:
    if not heads:
        return case(name)
    (model,) = (model for model in ARCHITECTURES if model.name == name)
    spec = WorkloadSpec(kind="transformers", name=name, config=model.config | {"num_attention_heads": heads})
    task = load_task(spec, size=model.size)
    spec = replace(spec, task=task.name)
    return spec, task, profile_of(spec, task)


class Counted(Ranks):
    """A rank that counts what it would send."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.num_bytes = 0

    def entered(self, path: str, value: Tensor) -> Tensor:
        self.num_bytes += value.numel() * value.element_size() * value.requires_grad
        return value

    def added(self, path: str, value: Tensor, bias: Tensor | None) -> Tensor:
        self.num_bytes += value.numel() * value.element_size()
        return super().added(path, value, bias)


def held_by(module: nn.Module, split: Split, rank: int) -> int:
    """Parameters of a rank: weights of linears by columns and rows, and biases of those by columns, in part."""
    total = sum(parameter.numel() for parameter in module.parameters())
    for path, style in split.styles.items():
        weight, bias = module.get_submodule(path).weight, getattr(module.get_submodule(path), "bias", None)
        dim = int((style == ROWS) != (path in split.transposed))
        own = sum(stop - start for start, stop in split.pieces[path][rank])
        if style in (COLUMNS, COLUMNS_INSIDE, ROWS):
            total -= (weight.shape[dim] - own) * weight.numel() // weight.shape[dim]
        if style in (COLUMNS, COLUMNS_INSIDE) and bias is not None:
            total -= len(bias) - own
    return total


def over(profile: ModelProfile, degree: int, task: Task) -> dict[str, float]:
    layers = list(profile.each_layer("fp32"))

    def total(sizes: list[Polynomial]) -> float:
        return sum(float(evaluate(size, SAMPLES, task.size, degree)) for size in sizes)

    return {
        "parameters": total([layer.num_parameters for layer in layers]),
        "flops": total([layer.flops(phase) for layer in layers for phase in PHASES]),
        "sent": total([message.num_bytes for layer in layers for message in layer.messages]),
    }


@pytest.mark.parametrize(("name", "heads", "degree"), [*((name, 0, 2) for name in NAMES), ("bert_qa", 8, 4)])
def test_a_rank_has_and_does_what_the_planner_says(name: str, heads: int, degree: int) -> None:
    spec, task, profile = with_heads(name, heads)
    assert profile.can_tensor_parallel
    assert degree in profile.splitting.degrees
    module = seeded_module(spec, task, 1)
    split = split_of_task(module, task, degree)
    said = over(profile, degree, task)
    for place in range(degree):
        assert held_by(module, split, place) == said["parameters"]
        rank = Counted(place)
        with run_as_rank(module, split, rank), FlopCounterMode(display=False) as counter:
            task.loss(module, task.example(SAMPLES, task.size)).backward()
        assert counter.get_total_flops() == pytest.approx(said["flops"], rel=1e-9)
        assert rank.num_bytes == said["sent"]
    alone = over(profile, 1, task)
    assert said["parameters"] < alone["parameters"] == profile.num_parameters
    plan = Plan(tensor_parallel=degree, micro_batch_size=SAMPLES, precision="fp32")
    expected = volumes(plan, profile, task.size, 0)
    assert expected.flops == pytest.approx(said["flops"], rel=1e-9)
    assert [(one.axis, one.collective, one.num_bytes) for one in expected.traffic] == [
        ("tensor", "all_reduce", said["sent"])
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_executor_takes_what_is_offered(name: str) -> None:
    spec, task, profile = case(name)
    for num_devices in (2, 4):
        file = found(name, num_devices).file
        workload = workload_of_task(spec, task, profile.num_layers)
        split = [candidate.plan for candidate in file.candidates if candidate.plan.tensor_parallel > 1]
        assert {plan.tensor_parallel for plan in split} == set(profile.splitting.degrees) & {2, num_devices}
        for plan in split:
            assert not plan.sequence_parallel
            assert not plan.vocab_parallel
            assert plan.pipeline_parallel == 1
            check_plan(plan, file, facts_of_workload(workload))
            check_task(plan, workload, "cpu")


def test_a_part_of_the_split_weights_is_held_and_every_sum_takes_time() -> None:
    _, task, profile = case("bert_qa")
    answered = found("bert_qa", 2)
    alone, split = (
        next(
            own
            for own in answered.file.candidates
            if (own.plan.data_parallel, own.plan.tensor_parallel, own.plan.zero_stage, own.plan.recompute)
            == (2 // tensor, tensor, 0, "none")
        )
        for tensor in (1, 2)
    )
    whole, part = (own.prediction.bytes_per_rank["parameters"] for own in (alone, split))
    assert whole - part == 4 * (profile.num_parameters - over(profile, 2, task)["parameters"])
    assert split.prediction.seconds["tensor_comm"] > alone.prediction.seconds["tensor_comm"] == 0


def test_gradients_of_parts_alone_are_averaged_over_replicas() -> None:
    _, task, profile = case("t5")
    answered = found("t5", 4)
    place = next(
        place
        for place, own in zip(answered.places, answered.file.candidates, strict=True)
        if (own.plan.data_parallel, own.plan.tensor_parallel) == (2, 2)
    )
    jobs = jobs_at(answered.space, [place])
    model = jobs.model
    total = sum(float(model.num_of(kind)[0] * common_on_rank(jobs, kind)[0]) for kind in model.kinds)
    assert total == over(profile, 2, task)["parameters"]


def test_without_pairs_none_is_offered_and_it_is_said_why() -> None:
    _, task, profile = case("resnet")
    assert not profile.can_tensor_parallel
    assert "no linears of ResNetForImageClassification can be split in pairs" in profile.splitting.refusal
    at = traced_setting(profile, load_device("a100-sxm-80gb"), 4, 16, task.size, precision="fp32")
    layouts, broken = legal_layouts(at, Options())
    assert set(layouts.tensor.tolist()) == {1}
    # Two degrees of four devices, beside which one more axis has a degree.
    assert broken[f"no tensor-parallel split: {profile.splitting.refusal}"] > 0
    plan = Plan(tensor_parallel=2, precision="fp32")
    assert profile.splitting.refusal in refusal(plan, facts_of(profile), task.size)


def test_a_degree_that_was_not_traced_is_refused() -> None:
    _, task, profile = case("bert_qa")
    plan = Plan(tensor_parallel=16, precision="fp32")
    assert "use one of these" in refusal(plan, facts_of(profile), task.size)


def test_a_module_that_is_too_large_to_be_tried_is_planned_without(monkeypatch: pytest.MonkeyPatch) -> None:
    # Before the limit: what it traces is kept for all tests.
    spec, task, _ = case("gpt2")
    monkeypatch.setattr(task_splits, "MOST_TRIED", 1000)
    profile = trace_task(spec, task, ("fp32",))
    assert not profile.can_tensor_parallel
    assert "tried with real weights, at most 1 k parameters" in profile.splitting.refusal


def test_sizes_over_degrees_are_those_that_were_traced() -> None:
    one, two = ((8.0, 1, 0, 0), (3.0, 0, 0, 0)), ((4.0, 1, 0, 0), (3.0, 0, 0, 0))
    made = over_degrees(one, two)
    for degree, batch in itertools.product((1, 2, 4), (1, 5)):
        assert float(evaluate(made, batch, 1, degree)) == 8 * batch / degree + 3
    assert float(evaluate(SEVERAL, 1, 1, 1)) == pytest.approx(0, abs=1e-12)
    assert np.allclose(evaluate(SEVERAL, 1, 1, np.array(DEGREES)), 1)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_planned_split_trains_as_one_process_does() -> None:
    plans = [own.plan for own in found("bert_qa", 2).file.candidates if own.plan.tensor_parallel == 2]
    cases = [("bert_qa", [asdict(plan) for plan in plans[:1]])]
    results = launch("tests.task_entries:train_as_planned", {"cases": cases}, 2, "cpu")
    assert [result["status"] for result in results] == ["passed"]
    assert torch.isfinite(torch.tensor(results[0]["reference"])).all()
