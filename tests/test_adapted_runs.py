"""Adapters as they are run: what torch counts and moves, and every layout against one process."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from executor.axes.optimizer import build_optimizer
from planner.cost.adapted import adapter_count
from profiles.library import trace_sizes
from profiles.models.adapters import TARGETS, adapters
from profiles.models.operators import evaluate
from profiles.models.sizes import sizes_of
from profiles.workloads.loading import load_workload
from profiles.workloads.workload import next_token_loss
from tests.parity_cases import adapted
from tests.plan_builders import GPT2, LLAMA, SEED
from tests.test_executor_parity import run


def built(spec):
    workload = load_workload(spec)
    return workload.build(0, len(workload.layers), SEED)


@pytest.mark.parametrize("spec", [LLAMA, GPT2])
@pytest.mark.parametrize("targets", [("q",), ("k", "o"), ("up", "down"), TARGETS])
def test_trained_parameters_are_those_that_the_planner_counts(spec, targets):
    model = built(replace(spec, adapters=adapters(3, targets)))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    sizes = replace(sizes_of(spec.name, spec.config), adapters=adapters(3, targets))
    assert trained == adapter_count(sizes)
    (group,) = build_optimizer(model.parameters(), None).param_groups
    assert sum(parameter.numel() for parameter in group["params"]) == trained


def test_models_start_as_they_are_and_adapters_alone_move():
    plain, model = built(LLAMA), built(replace(LLAMA, adapters=adapters(8, ("q", "v"))))
    tokens = torch.randint(0, 256, (2, 16))
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = build_optimizer(model.parameters(), None)
    for _ in range(2):
        next_token_loss(model(tokens), tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".down." in name or ".up." in name}


def test_a_trace_has_the_products_that_torch_counts():
    sizes = replace(sizes_of(LLAMA.name, LLAMA.config), adapters=adapters(8, ("q", "v", "down")))
    profile = trace_sizes(sizes, ["fp32"])
    model, tokens = built(sizes.workload), torch.randint(0, 256, (2, 64))
    with FlopCounterMode(display=False) as counter:
        next_token_loss(model(tokens), tokens).backward()
    # Attention on CPUs has no formula there.
    products = [op for layer in profile.each_layer("fp32") for op in layer.operators if op.kind == "matmul"]
    traced = sum(float(evaluate(op.flops, 2, 64, 1)) for op in products)
    assert traced == counter.get_total_flops()
    held = [(layer.num_parameters, layer.num_frozen_parameters) for layer in profile.each_layer("fp32")]
    counts = [sum(float(evaluate(own[place], 1, 1, 1)) for own in held) for place in range(2)]
    assert counts[0] - counts[1] == adapter_count(sizes)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_every_layout_trains_the_same_adapters(tmp_path):
    run(adapted(), 2, tmp_path)
