"""Experts of a task's mixtures in plans that are searched: what a trace says of ranks that share them, and prices."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from planner.legality import refusal
from planner.model_facts import facts_of
from planner.plans import Plan
from planner.prediction import Candidate
from planner.space.answers import answer
from planner.space.explore import explore
from planner.space.files import plan_file, planned_for
from planner.space.layouts import Options
from planner.space.measured_setting import measured_setting
from planner.space.predictions import predictions
from planner.space.questions import why_not
from planner.space.to_plans import best_places, plan_of
from profiles.artifacts import dump
from profiles.models.operators import evaluate
from profiles.models.profile import WorkloadSpec
from profiles.models.sharing import Sharing
from profiles.ranks.launcher import launch
from profiles.tracing import task_shares
from profiles.tracing.task_shares import prove_on_copy
from profiles.tracing.task_trace import trace_task
from profiles.workloads.task import user_task
from profiles.workloads.task_loading import load_task
from tests.machine_builders import machine
from tests.plan_finder import find, predict
from tests.task_entries import MODELS
from tests.test_task_experts import COUNT, HIDDEN, WIDE, Alone, Mixture, Routed

CHOSEN, TOKENS, BATCH = 2, 6, 8
# Weights and biases of all experts of a layer.
EXPERTS = COUNT * (2 * HIDDEN * WIDE + HIDDEN + WIDE)


class Stacked(nn.Module):
    """Two layers of mixtures behind a linear."""

    def __init__(self, kind=Mixture):
        super().__init__()
        self.first = nn.Linear(HIDDEN, HIDDEN)
        self.blocks = nn.ModuleList(Routed(kind) for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x.flatten(0, 1)).view_as(x)
        return x.square().mean()


def _traced(build):
    task = user_task(build, lambda step, count: [{"x": torch.ones(TOKENS, HIDDEN)} for _ in range(count)])
    spec = WorkloadSpec(kind="module", name="stacked", factory="tests.test_task_sharing:Stacked")
    return trace_task(spec, task, ("fp32",))


@pytest.fixture(scope="module")
def model():
    return _traced(Stacked)


def _space(model, options=None, ranks=4):
    at = measured_setting(machine(), model, ranks, BATCH, model.usual_size or 1, "fp32")
    return explore(at, options or Options())


def test_ranks_have_each_expert_once_and_send_every_row_that_was_chosen(model):
    assert model.sharing.degrees == (2, 4)
    for degree, layers in model.sharing.at("fp32").items():
        for whole, own in zip(model.layers["fp32"], layers, strict=True):
            held, experts = (evaluate(size, 1, 1, 1) for size in (own.num_parameters, own.num_expert_parameters))
            assert held + (degree - 1) * experts == evaluate(whole.num_parameters, 1, 1, 1)
            # No row is computed twice, or by nobody.
            for phase in ("forward", "backward"):
                assert evaluate(own.flops(phase), 3, 1, 1) == evaluate(whole.flops(phase), 3, 1, 1)
            sent = sorted(float(evaluate(message.num_bytes, 3, 1, 1)) for message in own.messages)
            rows = 3 * TOKENS * CHOSEN * HIDDEN * 4
            assert sent == ([8 * COUNT, rows, rows, rows, rows] if experts else [])
            assert {message.collective for message in own.messages} <= {"all_to_all"}
        assert sum(float(evaluate(layers[kind].num_expert_parameters, 1, 1, 1)) for kind in model.structure) == (
            2 * EXPERTS / degree
        )


def test_what_is_not_proven_is_not_offered_and_says_why():
    alone = _traced(lambda: Stacked(Alone))
    assert not alone.sharing.degrees
    assert "computes all its experts at once" in alone.sharing.refusal
    space = _space(alone)
    assert set(space.layouts.expert) == {1}
    plan = Plan(data_parallel=4, expert_parallel=2, micro_batch_size=2)
    assert "in its own code" in refusal(plan, facts_of(alone), 1)
    told = why_not(answer(space, 3, simulate=False, notes=()), "ep=2")
    assert not told.is_legal
    assert "experts cannot be shared out: " in told.rule


def test_every_plan_that_is_offered_is_one_that_the_executor_takes(model):
    space = _space(model, Options(offload=("none",)))
    plans = [plan_of(space, place) for place in best_places(space, len(space.best))]
    shared = [plan for plan in plans if plan.expert_parallel > 1]
    assert {plan.expert_parallel for plan in shared} == {2, 4}
    assert [refusal(plan, facts_of(model), 1) for plan in shared] == [""] * len(shared)
    assert "tp=1, cp=1, pp=1, zero=0" in why_not(answer(space, 3, simulate=False, notes=()), "ep=2,zero=3").rule
    assert "was traced for" in refusal(replace(shared[0], expert_parallel=8), facts_of(model), 1)


def test_plans_with_all_experts_cost_what_they_cost_where_nothing_is_known_of_sharing(model):
    options = Options(offload=("none",), recompute=("none",))
    known, unknown = _space(model, options), _space(replace(model, sharing=Sharing()), options)
    without = {plan_of(unknown, place).id: place for place in best_places(unknown, len(unknown.best))}
    with_all = {plan_of(known, place).id: place for place in best_places(known, len(known.best))}
    assert without.keys() == {name for name in with_all if " ep" not in name}
    places = list(without)
    assert predictions(known, [with_all[name] for name in places]) == predictions(unknown, list(without.values()))


def test_memory_falls_and_messages_appear_as_experts_are_shared_out(model):
    space = _space(model, Options(offload=("none",)))
    found = [
        predict(space, Plan(data_parallel=4, expert_parallel=degree, micro_batch_size=2, precision="fp32"))
        for degree in (1, 2, 4)
    ]
    states = [own.bytes_per_rank["parameters"] for own in found]
    # A linear and two routers with norms behind them are on every rank, in 32 bits.
    rest = HIDDEN * HIDDEN + HIDDEN + 2 * (HIDDEN * COUNT + COUNT + 2 * HIDDEN)
    assert states == [4 * (rest + 2 * EXPERTS / degree) for degree in (1, 2, 4)]
    assert found[0].peak_bytes > found[1].peak_bytes > found[2].peak_bytes
    sent = [own.seconds["expert_comm"] for own in found]
    assert sent[0] == 0 < sent[1]
    # Five messages a layer, of so few bytes that each takes what starting it does.
    assert sent[1] == pytest.approx(2 * 5 * 1e-4, rel=0.05)
    optimizer = [own.seconds["optimizer"] for own in found]
    assert optimizer[0] > optimizer[1] > optimizer[2]


def test_recomputed_layers_send_their_rows_once_more(model):
    space = _space(model, Options(offload=("none",)))
    plan = Plan(data_parallel=4, expert_parallel=2, micro_batch_size=2, precision="fp32")
    plain, again = (predict(space, replace(plan, recompute=how)).seconds["expert_comm"] for how in ("none", "full"))
    # Three messages forward, which come again, and two backward.
    assert again == pytest.approx(plain * 8 / 5, rel=0.2)


def test_a_large_module_is_proven_on_a_copy_with_narrow_experts(monkeypatch):
    spec, size = MODELS["olmoe"]
    task, seen = load_task(spec, size=size), []
    monkeypatch.setattr(task_shares, "prove_shares", lambda module, run, *degrees: seen.append(module))
    prove_on_copy(spec, task, (2,))
    (module,) = seen
    experts = module.model.layers[0].mlp.experts
    hidden = experts.gate_up_proj.shape[2]
    assert tuple(experts.gate_up_proj.shape) == (4, 32, hidden)
    assert tuple(experts.down_proj.shape) == (4, hidden, 16)
    monkeypatch.undo()
    prove_on_copy(spec, task, (2, 4))
    monkeypatch.setattr(task_shares, "MOST_PROVEN", 1000)
    with pytest.raises(Exception, match="at most 1 k parameters"):
        prove_on_copy(spec, task, (2,))


@pytest.mark.gloo
@pytest.mark.slow
@pytest.mark.usefixtures("warm_ranks")
def test_two_ranks_that_share_experts_hold_what_is_predicted():
    files = []
    for name in ("mixtral", "gpt_oss"):
        spec, size = MODELS[name]
        traced = trace_task(spec, load_task(spec, size=size), ("fp32",))
        space = _space(traced, Options(offload=("none",), zero_stages=(0,)), ranks=2)
        plan = Plan(data_parallel=2, expert_parallel=2, micro_batch_size=4, precision="fp32")
        own, place = find(space, plan)
        one = Candidate(rank=1, plan=plan, prediction=predictions(own, [place])[0], verdict="", executable=True)
        files.append(plan_file(planned_for(space.at), [one], num_legal=1, rejected={}, notes=()))
    plain = [json.loads(dump("plan", file)) for file in files]
    for own in plain:
        del own["artifact"], own["schema"]
    payload = {"files": plain, "turns": 0, "steps": 0, "trusted": []}
    found = launch("tests.numbers_tasks.ranks:run", payload, 2, "cpu")
    # Of two ranks one is chosen more often than the other; a prediction is of either alike.
    held = [np.mean(own["peak_bytes"]) for own in found]
    assert held == pytest.approx([file.candidates[0].prediction.peak_bytes for file in files], rel=0.03)
