"""What recipes leave of a model: exact shapes and bytes, the function itself where only nothing goes, refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from executor.compress.distil import TEMPERATURE, divergence
from executor.compress.evaluation import num_stored_bytes
from executor.compress.fake_quantise import train_rounded
from executor.compress.shrink import shrink
from executor.compress.sparsify import largest, two_of_four
from planner.compression.prices import is_on_front, parse_targets
from planner.compression.recipes import (
    AUTO,
    KNOWN,
    CompressionChoice,
    Recipe,
    recipe,
    recipes,
    smaller,
    smaller_weights,
    stored_bytes,
)
from planner.plans import Plan
from planner.space.weights import weights_of
from profiles.errors import InputError, PlanError, UnknownNameError
from profiles.models.profile import WorkloadSpec
from profiles.workloads.int8_linears import quantise, rounded
from profiles.workloads.loading import load_workload
from profiles.workloads.workload import Workload
from tests.plan_builders import GPT2, LLAMA, QWEN3

WIDE = replace(LLAMA, config={**LLAMA.config, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8})
PRUNED = [f"{m}-{part}-{p}" for m in ("prune", "distil") for part in ("ffn", "heads", "layers") for p in (25, 50)]


def left_of(spec: WorkloadSpec, own: Recipe) -> Workload:
    return load_workload(replace(spec, config=smaller(spec.config, own)))


def built(workload: Workload) -> nn.Sequential:
    return workload.build(0, len(workload.layers), seed=3)


@pytest.mark.parametrize("spec", [WIDE, GPT2], ids=lambda spec: spec.name)
@pytest.mark.parametrize("name", [*PRUNED, *KNOWN])
def test_parameters_and_bytes_are_those_of_the_real_model(spec: WorkloadSpec, name: str) -> None:
    own, sizes = recipe(name), weights_of(spec.name, spec.config)
    if spec is GPT2 and own.part == "heads":
        with pytest.raises(PlanError, match="as wide as its hidden states"):
            smaller(spec.config, own)
        return
    model = built(left_of(spec, own))
    assert smaller_weights(sizes, own).num_parameters == sum(p.numel() for p in model.parameters())
    if own.scheme:
        quantise(model, own.scheme)
    assert stored_bytes(sizes, own) == num_stored_bytes(model)


@torch.no_grad()
def silence(model: nn.Sequential, part: str, num_groups: int) -> None:
    """Let half of the channels, groups of heads or layers add nothing."""
    generator = torch.Generator().manual_seed(1)
    silent = torch.randperm(4, generator=generator)[:2] + 1
    for position, layer in enumerate(model):
        for name, module in layer.named_modules():
            if part == "ffn" and name.endswith(("down_proj", "mlp.c_proj")):
                count = module.weight.shape[1]
                module.weight[:, torch.randperm(count, generator=generator)[: count // 2]] = 0
            if part == "heads" and name.endswith("o_proj"):
                groups = module.weight.view(module.weight.shape[0], num_groups, -1)
                groups[:, torch.randperm(num_groups, generator=generator)[: num_groups // 2]] = 0
            if part == "layers" and position in silent and name.endswith(("o_proj", "down_proj", "c_proj")):
                for parameter in module.parameters():
                    parameter.zero_()


@pytest.mark.parametrize("spec", [WIDE, GPT2, QWEN3], ids=lambda spec: spec.name)
@pytest.mark.parametrize("part", ["ffn", "heads", "layers"])
def test_what_adds_nothing_is_what_goes(spec: WorkloadSpec, part: str) -> None:
    """Without it the model says the same."""
    if spec is GPT2 and part == "heads":
        return
    own, workload = recipe(f"prune-{part}-50"), load_workload(spec)
    model, tokens = built(workload), workload.example_input(2, 16)
    silence(model, part, workload.num_kv_heads)
    left = shrink(model, workload, left_of(spec, own), own, tokens)
    assert sum(p.numel() for p in left.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(left(tokens), model(tokens), rtol=1e-4, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 0.95))
def test_zeros_are_those_that_torch_prunes(rows: int, columns: int, share: float) -> None:
    linear = nn.Linear(columns, rows, bias=False)
    mask = largest(linear.weight.detach(), share)
    prune.l1_unstructured(linear, "weight", amount=round(share * rows * columns))
    # Which of two equally large ones goes does not matter.
    sizes, theirs = linear.weight_orig.detach().abs(), linear.weight_mask.bool()
    assert torch.equal(sizes[mask].sort().values, sizes[theirs].sort().values)


@given(st.integers(1, 20), st.integers(1, 20))
def test_two_of_every_four_stay(rows: int, groups: int) -> None:
    weights = torch.randn(rows, 4 * groups)
    mask = two_of_four(weights).view(rows, groups, 4)
    assert bool((mask.sum(dim=2) == 2).all())
    magnitudes = weights.abs().view(rows, groups, 4)
    kept, gone = magnitudes.masked_fill(~mask, torch.inf).amin(2), magnitudes.masked_fill(mask, 0).amax(2)
    assert bool((kept >= gone).all())


def test_rounding_is_what_int8_leaves_and_lets_gradients_pass() -> None:
    torch.manual_seed(0)
    linear, hidden = nn.Linear(48, 32, bias=False), torch.randn(2, 5, 48)
    trained = nn.Sequential(nn.Linear(48, 32, bias=False))
    trained.load_state_dict({"0.weight": linear.weight.detach().clone()})
    train_rounded(trained)
    output = trained(hidden)
    output.sum().backward()
    quantised = nn.Sequential(linear)
    quantise(quantised, "int8-dynamic")
    with torch.no_grad():
        # Scales are not those of torchao to the last bit: either is off by half a step.
        assert float((output - quantised(hidden)).abs().max()) < 3e-2 * float(output.abs().max())
    weight = trained[0].weight
    step = weight.detach().abs().amax(1, keepdim=True) / 127
    assert bool(((rounded(weight.detach()) - weight.detach()).abs() <= step / 2 * (1 + 1e-4)).all())
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, rounded(hidden).sum(dim=(0, 1)).expand(32, 48), rtol=1e-4, atol=1e-4)


def test_divergence_is_nothing_from_oneself_and_else_more() -> None:
    logits, other = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    assert float(divergence(logits, logits)) == pytest.approx(0, abs=1e-6)
    own, wanted = (torch.softmax(x.double() / TEMPERATURE, dim=-1) for x in (logits, other))
    exact = (wanted * (wanted / own).log()).sum(-1).mean() * TEMPERATURE**2
    assert float(divergence(logits, other)) == pytest.approx(float(exact), rel=1e-5)


def test_names() -> None:
    assert [own.name for own in recipes("auto")] == list(AUTO)
    names = [own.name for own in recipes("int8-dynamic, prune-ffn-30,int8-dynamic")]
    assert names == ["none", "int8-dynamic", "prune-ffn-30"]
    for name in ("prune-ffn-0", "prune-ffn-100", "prune-toes-50", "int4", "sparse", "distil-50"):
        with pytest.raises(UnknownNameError, match="unknown compression"):
            recipe(name)
    with pytest.raises(PlanError, match="can be removed"):
        smaller({**LLAMA.config, "num_key_value_heads": 1}, recipe("prune-heads-50"))


def test_targets() -> None:
    assert parse_targets("size=0.5, latency=0.8") == {"size": 0.5, "latency": 0.8}
    assert parse_targets(None) == {}
    for text in ("size", "size=0", "size=2", "speed=0.5", "size=x"):
        with pytest.raises(InputError, match="--target"):
            parse_targets(text)


def choice(step: float, size: float, latency: float | None) -> CompressionChoice:
    fields: dict[str, Any] = {
        "recipe": recipe("none"), "plan": Plan(), "num_parameters": 1, "peak_bytes": 1.0, "risk": "",
    }  # fmt: skip
    return CompressionChoice(step_seconds=step, stored_bytes=size, latency_seconds=latency, **fields)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(rows: list[tuple[int, int, int]]) -> None:
    made = [choice(*map(float, row)) for row in rows]
    for own, row in zip(made, rows, strict=True):
        beaten = any(all(a <= b for a, b in zip(other, row, strict=True)) and other != row for other in rows)
        assert is_on_front(own, made) == (not beaten)
