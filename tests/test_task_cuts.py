"""What is offered of pipelines of tasks is what the executor does: the same cuts, bytes, weights and rules."""

from __future__ import annotations

import functools
from dataclasses import asdict
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from executor.axes.task_stage import TaskStage, build_task_stage
from executor.legality import check_plan
from executor.run.checks import check_task, facts_of_workload
from executor.run.subject import workload_of_task
from planner.plans import Plan
from planner.space.answers import Answer, answer
from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.memory import memories
from planner.space.replay_best import in_order
from planner.space.stage_passes import layers_between, shared_of, stage_passes, stage_seconds_of_messages
from planner.space.traced_setting import traced_setting
from profiles.errors import PlanError
from profiles.machines.devices import load_device
from profiles.models.cutting import nearest
from profiles.models.operators import evaluate
from profiles.models.profile import ModelProfile, WorkloadSpec
from profiles.ranks.launcher import launch
from profiles.tracing.task_trace import trace_task
from profiles.workloads.task import Task
from profiles.workloads.task_loading import load_task
from tests.marks import slow
from tests.matrix.architectures import ARCHITECTURES
from tests.test_cuts import SPEC as TOY
from tests.test_cuts import WIDTH, Chain, Skips, block, task_of
from tests.traced import profile_of

CPU = torch.device("cpu")
MANY = 8


class Barred(Chain):
    """Eight blocks, of which what comes to some in the midst is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(MANY))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.stem(x)
        for number, part in enumerate(self.blocks):
            x = part(x)
            if number in (2, 3, 4):
                x = x * 1
                x[:, 0] = 0
        return (x[:, 0] - y).square().mean()


class Alone(Chain):
    """No blocks that are repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])


@functools.cache
def case(name: str) -> tuple[WorkloadSpec, Task, ModelProfile]:
    toys = {"chain": Chain, "skips": Skips, "barred": Barred, "alone": Alone}
    if name in toys:
        task = task_of(toys[name])
        return TOY, task, trace_task(TOY, task, ("fp32", "bf16"))
    (model,) = (model for model in ARCHITECTURES if model.name == name)
    task = load_task(model.spec, size=model.size)
    spec = WorkloadSpec(kind="transformers", name=name, config=model.config, task=task.name)
    return spec, task, profile_of(spec, task)


def stages_of(name: str, plan: Plan) -> list[TaskStage]:
    spec, task, profile = case(name)
    return [build_task_stage(spec, task, plan, profile.num_layers, at, 1, CPU) for at in range(plan.pipeline_parallel)]


def pipeline(*bounds: int, precision: str = "fp32", micro_batch: int = 3) -> Plan:
    return Plan(
        pipeline_parallel=len(bounds) + 1, schedule="1f1b", micro_batch_size=micro_batch,
        num_microbatches=len(bounds) + 1, stage_bounds=(0, *bounds), precision=precision,
    )  # fmt: skip


@functools.cache
def found(name: str, num_devices: int) -> Answer:
    _, task, profile = case(name)
    size = task.size or 1
    at = traced_setting(profile, load_device("a100-sxm-80gb"), num_devices, 16, size, precision="fp32")
    return answer(in_order(explore(at, Options(offload=("none",)))), 100, False, ())


@pytest.mark.parametrize(
    ("name", "precision"),
    [("chain", "fp32"), ("skips", "bf16"), ("barred", "fp32"), ("t5", "fp32"), slow("resnet", "fp32")],
)
def test_as_many_bytes_come_to_a_stage_as_was_said(name: str, precision: str) -> None:
    _, task, profile = case(name)
    for position in profile.cutting.positions:
        built = stages_of(name, pipeline(position, precision=precision, micro_batch=5))
        sent, received = built[0].edges()[1], built[1].edges()[0]
        sizes = [sum(tensor.numel() * tensor.element_size() for tensor in edge) for edge in (sent, received)]
        said = evaluate(profile.cutting.received_at(position, precision), 5, task.size or 1, 1)
        assert sizes == [pytest.approx(float(said), rel=1e-9)] * 2, position


def test_a_module_is_cut_only_where_the_executor_can() -> None:
    _, _, profile = case("barred")
    assert profile.can_pipeline
    for position in range(1, MANY + 1):
        if position in profile.cutting.positions:
            stages_of("barred", pipeline(position))
        else:
            with pytest.raises(PlanError, match="changed in place"):
                stages_of("barred", pipeline(position))
    assert profile.cutting.positions == (1, 2, 3, 7, 8)
    # The places nearest to an even split that can be cut; and nothing else is offered.
    plans = [candidate.plan for candidate in found("barred", 4).file.candidates]
    piped = [plan for plan in plans if plan.pipeline_parallel > 1]
    assert piped
    for plan in piped:
        assert set(plan.stage_bounds[1:]) <= set(profile.cutting.positions)
        stages_of("barred", plan)


def test_what_cannot_be_cut_says_which_module() -> None:
    _, _, profile = case("alone")
    assert not profile.can_pipeline
    assert "has no repeated blocks" in profile.cutting.refusal
    assert TOY.title in profile.cutting.refusal
    result = found("alone", 2).file
    assert all(candidate.plan.pipeline_parallel == 1 for candidate in result.candidates)
    assert any("has no repeated blocks" in reason for reason in result.rejected)


@pytest.mark.parametrize("name", ["chain", "t5", slow("resnet")])
@pytest.mark.parametrize("num_devices", [2, 8])
def test_the_executor_takes_every_plan_that_is_offered(name: str, num_devices: int) -> None:
    spec, task, profile = case(name)
    file = found(name, num_devices).file
    workload = workload_of_task(spec, task, profile.num_layers)
    degrees = {candidate.plan.pipeline_parallel for candidate in file.candidates}
    assert degrees >= {1, 2}
    for candidate in file.candidates:
        assert candidate.executable
        check_plan(candidate.plan, file, facts_of_workload(workload))
        check_task(candidate.plan, workload, "cpu")


@pytest.mark.parametrize(
    ("name", "bounds"),
    [("chain", (1, 4)), ("t5", (3,)), ("t5", (2, 7)), slow("gpt2", (1, 3)), slow("resnet", (5, 12))],
)
def test_stages_hold_the_parameters_that_the_planner_says(name: str, bounds: tuple[int, ...]) -> None:
    _, task, profile = case(name)
    at = traced_setting(profile, load_device("a100-sxm-80gb"), len(bounds) + 1, 8, task.size or 1, precision="fp32")
    model, plan = at.model.transformer, pipeline(*bounds)
    layers = layers_between(plan.stage_bounds, model)
    own = sum(count * model.parameters_of(kind)[0] for kind, count in layers.items())
    assert float(np.sum(own)) == profile.num_parameters
    held = own + shared_of(plan.stage_bounds, model)
    built = [sum(p.numel() for p in stage.parameters()) for stage in stages_of(name, plan)]
    # What stands between two blocks is counted with the second, and held with the first where a stage begins there.
    assert sum(built) == pytest.approx(float(np.sum(held)))
    assert built == pytest.approx(held.tolist(), abs=max(float(model.hidden_size[0]), 64.0))


def test_flops_of_stages_add_up_to_the_whole() -> None:
    _, task, profile = case("t5")
    layers = list(profile.each_layer("fp32"))
    whole = profile.model_flops(2, task.size)
    for bounds in combinations(profile.cutting.positions, 2):
        ends = (0, *bounds, len(layers))
        parts = [
            3 * sum(float(evaluate(layer.flops("forward"), 2, task.size, 1)) for layer in layers[start:stop])
            for start, stop in pairwise(ends)
        ]
        assert sum(parts) == pytest.approx(whole)


def test_more_bytes_take_longer_and_each_message_takes_its_own() -> None:
    answered = found("t5", 8)
    place = next(
        place
        for place, candidate in zip(answered.places, answered.file.candidates, strict=True)
        if candidate.plan.pipeline_parallel == 8
    )
    plan = answered.file.candidates[answered.places.index(place)].plan
    passes = stage_passes(answered.space, [place])
    seconds = stage_seconds_of_messages(answered.space, plan, passes, 0)
    _, task, profile = case("t5")
    received = [
        float(evaluate(profile.cutting.received_at(bound, "fp32"), plan.micro_batch_size, task.size, 1))
        for bound in plan.stage_bounds[1:]
    ]
    assert np.argsort(seconds[:-1], kind="stable").tolist() == np.argsort(received, kind="stable").tolist()
    assert seconds[-1] == 0 < seconds[0]
    (memory,) = memories(answered.space, [place])
    assert len(memory.stages) == 8


def test_a_pipeline_of_equal_blocks_halves_what_a_stage_holds() -> None:
    answered = found("chain", 2)
    spans = {
        candidate.plan.pipeline_parallel: candidate.prediction
        for candidate in answered.file.candidates
        if candidate.plan.num_devices == candidate.plan.pipeline_parallel * candidate.plan.data_parallel
        and candidate.plan.zero_stage == 0
    }
    whole, halves = spans[1].bytes_per_rank["parameters"], spans[2].bytes_per_rank["parameters"]
    assert whole / 2 < halves < whole


@given(st.integers(3, 40).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.integers(1, size - 1), min_size=1))))
def test_stages_begin_at_the_nearest_places(drawn: tuple[int, set[int]]) -> None:
    size, able = drawn
    positions = tuple(sorted(able))
    for stages in range(1, min(len(positions), 6) + 2):
        even = tuple(size * stage // stages for stage in range(stages))
        chosen = nearest(even, positions)
        assert chosen[0] == 0
        assert set(chosen[1:]) <= able
        assert list(chosen) == sorted(set(chosen))
        if set(even[1:]) <= able and len(set(even)) == stages:
            assert chosen == even


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_planned_pipelines_train_as_one_process_does() -> None:
    cases = []
    for name in ("t5", "bert_qa"):
        plans = [candidate.plan for candidate in found(name, 2).file.candidates]
        piped = [plan for plan in plans if plan.pipeline_parallel == 2]
        cases.append((name, [asdict(plan) for plan in piped[:1]]))
    results = launch("tests.task_entries:train_as_planned", {"cases": cases}, 2, "cpu")
    assert len(results) == 2
    assert [result for result in results if result["status"] != "passed"] == []
