"""Training in fp16: losses are scaled and steps skipped as plain torch's GradScaler does it, on all ranks alike."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import planner
from executor.axes.loss_scale import SMALLEST_SCALE, LossScale, scaled
from executor.run.checks import facts_of_workload
from executor.run.log_values import log_line, log_values, scale_values
from planner.legality import refusal
from planner.plans import Plan
from profiles import artifacts
from profiles.errors import ToleranceError
from profiles.machines.profile import MachineProfile
from profiles.ranks.launcher import launch
from profiles.workloads.loading import load_workload
from tests.apply_entries import module_of, task_of
from tests.machine_builders import machine
from tests.plan_builders import LLAMA, make_plan_file, make_prediction
from tests.scale_entries import FIRST, INTERVAL, MOST, OVERFLOWS, RATE, STEPS, bumped, scaled_loss
from tests.test_train import case, settings_of, tokens_of

HALVES = {"micro_batch_size": 2, "num_microbatches": 2, "data_parallel": 2, "precision": "fp16"}
WHOLE = {"micro_batch_size": 2, "num_microbatches": 4, "precision": "fp16"}
LAYOUTS: list[dict[str, Any]] = [
    HALVES,
    {**HALVES, "zero_stage": 3},
    {**WHOLE, "tensor_parallel": 2},
    {**WHOLE, "pipeline_parallel": 2, "schedule": "1f1b", "stage_bounds": (0, 2)},
]


def by_hand(name: str, num_parts: int) -> dict[str, list[float]]:
    """Plain torch in one process: autocast in fp16, its own GradScaler, `num_parts` micro-batches."""
    module = module_of(task_of(name))
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
    scaler = torch.amp.GradScaler("cpu", init_scale=FIRST, growth_interval=INTERVAL)
    losses, norms, scales = [], [], []
    for step in range(STEPS):
        whole, total = bumped(name, step, 0, 1), 0.0
        parts = zip(*(value.chunk(num_parts) for value in whole.values()), strict=True)
        for part in parts:
            with torch.autocast("cpu", torch.float16):
                loss = scaled_loss(module, dict(zip(whole, part, strict=True))) / num_parts
            scaler.scale(loss).backward()
            total += float(loss.detach())
        scaler.unscale_(optimizer)
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), MOST)))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(total)
        scales.append(scaler.get_scale())
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        evaluated = float(scaled_loss(module, bumped(name, 0, 0, 1)))
    return {"losses": losses, "norms": norms, "scales": scales, "evaluated": [evaluated]}


@pytest.mark.gloo
def test_loops_in_fp16_scale_and_skip_as_plain_torch_does_and_go_on_with_the_scale(tmp_path: Path) -> None:
    plans = [asdict(Plan(**layout)) for layout in LAYOUTS]
    payload = {"name": "llama", "plans": plans, "folder": str(tmp_path), "stop": OVERFLOWS + 1}
    found = launch("tests.scale_entries:loops", payload, 2, "cpu")
    wanted = by_hand("llama", 4)
    assert wanted["scales"][OVERFLOWS] == wanted["scales"][OVERFLOWS - 1] / 2
    assert max(wanted["scales"]) > FIRST, "it grows as well"
    for layout, own in zip(LAYOUTS, found, strict=True):
        assert own["scales"] == wanted["scales"], layout
        assert own["losses"] == pytest.approx(wanted["losses"], rel=1e-3), layout
        assert math.isnan(own["norms"].pop(OVERFLOWS)), layout
        rest = wanted["norms"][:OVERFLOWS] + wanted["norms"][OVERFLOWS + 1 :]
        assert own["norms"] == pytest.approx(rest, rel=5e-2), layout
        assert own["skipped"] == 1, layout
        assert own["evaluated"] == pytest.approx(wanted["evaluated"][0], rel=1e-3), layout


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 4))
def test_the_scale_goes_as_torchs_does(overflows: list[bool], interval: int) -> None:
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    scale = LossScale(torch.device("cpu"), is_alone=True)
    scale.growth_interval = interval
    scaler = torch.amp.GradScaler("cpu", init_scale=FIRST, growth_interval=interval)
    optimizer = torch.optim.SGD([theirs], lr=0.0)
    for overflow in overflows:
        wanted = torch.tensor([1.0, float("inf") if overflow else 2.0, 3.0])
        scaler.scale((theirs * wanted).sum()).backward()
        scaler.unscale_(optimizer)
        scaled((ours * wanted).sum(), scale).backward()
        scale.update(scale.unscale([ours]))
        assert scale.is_skipping == overflow
        torch.testing.assert_close(ours.grad, theirs.grad, equal_nan=True)
        scaler.step(optimizer)
        scaler.update()
        assert scale.scale == scaler.get_scale()
        ours.grad = theirs.grad = None
    assert scale.num_skipped == sum(overflows)


def test_a_scale_that_never_fits_ends_in_a_sentence() -> None:
    scale, bad = LossScale(torch.device("cpu"), is_alone=True), torch.ones(1)
    while scale.scale / 2 >= SMALLEST_SCALE:
        scale.update(bad)
    with pytest.raises(ToleranceError, match=r"not finite even with the loss scaled by .*: use bf16 or fp32"):
        scale.update(bad)


def test_gradients_put_aside_are_no_step_and_their_memory_comes_back() -> None:
    weight = nn.Parameter(torch.ones(2))
    scale, optimizer = LossScale(torch.device("cpu"), is_alone=True), torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.full((2,), float("nan"))
    kept = weight.grad.data_ptr()
    scale.put_aside([weight])
    optimizer.step()
    assert weight.tolist() == [1.0, 1.0]
    assert not optimizer.state
    scale.put_back()
    assert weight.grad is not None
    assert weight.grad.data_ptr() == kept


def in_fp16(own: MachineProfile) -> MachineProfile:
    """The machine as if it computed in fp16 as it does in bf16."""
    peak = own.peak_flops_per_second
    more = [replace(curve, precision="fp16") for curve in own.kernels if curve.precision == "bf16"]
    return replace(own, peak_flops_per_second=peak | {"fp16": peak["bf16"]}, kernels=(*own.kernels, *more))


def test_fp16_is_priced_as_bf16_with_one_more_pass_over_gradients(tmp_path: Path) -> None:
    artifacts.write(tmp_path / "machine.json", "machine-profile", in_fp16(machine()))
    found = {}
    for precision in ("bf16", "fp16"):
        planned = planner.plan(
            "llama-26m", 2, machine=tmp_path / "machine.json", global_batch=8, sequence_length=64,
            precision=precision,
        )  # fmt: skip
        found[precision] = {
            replace(one.plan, precision="fp16"): one.prediction for one in planned.file.candidates if one.executable
        }
    both = found["bf16"].keys() & found["fp16"].keys()
    assert both
    for plan in both:
        low, own = found["bf16"][plan], found["fp16"][plan]
        assert own.peak_bytes == pytest.approx(low.peak_bytes), plan.id
        # AdamW reads and writes 40 bytes of a parameter that it updates, 8 more go with each gradient.
        gradients = 2 if plan.zero_stage == 1 else 1
        wanted = low.seconds["optimizer"] * (1 + gradients * 8 / 40)
        assert own.seconds["optimizer"] == pytest.approx(wanted, rel=0.05), plan.id
        assert own.step_seconds > low.step_seconds, plan.id


def test_devices_without_bf16_are_planned_for_in_fp16_and_the_plan_runs() -> None:
    planned = planner.plan("gpt2-small", 4, device="v100-sxm-32gb", global_batch=32, sequence_length=1024)
    assert planned.best.plan.precision == "fp16"
    assert planned.best.executable


@pytest.mark.parametrize("codec", ["fp16", "int8", "topk-1", "powersgd-1"])
def test_gradients_of_fp16_are_not_coded_but_in_bf16(codec: str) -> None:
    facts = facts_of_workload(load_workload(LLAMA))
    assert refusal(Plan(**{**HALVES, "codec": "bf16"}), facts, 32) == ""
    said = refusal(Plan(**{**HALVES, "codec": codec}), facts, 32)
    assert said.startswith(f"plan precision=fp16 with codec={codec}: ")
    assert said.endswith("use codec=none or bf16")


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_training_in_fp16_goes_on_with_its_scale(tmp_path: Path) -> None:
    tokens_of(tmp_path / "tokens.bin")
    settings = settings_of(tmp_path, loss_scale={"first": 2.0**24, "growth_interval": 3}, evaluation={})
    cases = [
        case("llama", HALVES, settings, str(tmp_path / "whole")),
        case("llama", HALVES, settings, str(tmp_path / "parts")) | {"stops": 3},
        case("llama", HALVES, settings, str(tmp_path / "parts")),
    ]
    whole, begun, ended = launch("tests.train_entries:trainings", {"cases": cases}, 2, "cpu")
    assert [*begun["losses"], *ended["losses"]] == whole["losses"]
    kept = [
        json.loads((tmp_path / name / "step-00000006" / "progress.json").read_text()) for name in ("whole", "parts")
    ]
    assert kept[0] == kept[1]
    assert kept[0]["scale"]["num_skipped"] > 0
    assert kept[0]["scale"]["scale"] < 2.0**24


def test_the_log_tells_the_scale_and_what_was_skipped() -> None:
    plan = Plan(precision="fp16")
    file = make_plan_file(plan)
    values = log_values(file, plan, make_prediction(), 0.5, step=7, loss=2.0, memory_bytes=2**30)
    scale = LossScale(torch.device("cpu"), is_alone=True)
    scale.update(torch.ones(1))
    assert "loss scale: 32768  skipped: 1  memory: 1.00GiB" in log_line(values | scale_values(scale))
    assert "scale" not in log_line(values | scale_values(None))
