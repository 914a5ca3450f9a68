"""Whole modules of any kind are traced as torch counts them: FLOPs equal, saved bytes within one in a hundred."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from planner.command import app as plan_app
from profiles.command import app as profile_app
from profiles.errors import InputError
from profiles.models.profile import WorkloadSpec
from profiles.tracing.task_trace import trace_task
from profiles.workloads.task import user_task
from profiles.workloads.task_loading import load_task
from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.execution import COLUMNS
from tests.matrix.table import models, recorded
from tests.matrix.ways import against_torch, traced, tried

RUNNER = CliRunner()
RECURRENT = ("lstm", "translator")
MODULES = "tests.matrix.user_modules"
# One of each kind: spans, convolutions, two towers; test_task_cuts.py has an encoder with a decoder.
SAMPLE = ("bert_qa", "resnet", "clip")


def _marked(name):
    return pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow)


@pytest.mark.parametrize("name", [_marked(model.name) for model in ARCHITECTURES])
def test_flops_and_saved_bytes_are_those_of_a_real_step(name):
    (model,) = (model for model in ARCHITECTURES if model.name == name)
    flops, saved = against_torch(*traced(model.spec, model.size))
    assert flops == pytest.approx(1, abs=1e-6)
    assert saved == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["unet", "scalar_parameter", "towers", "tied", "gives_dict"])
def test_so_are_those_of_a_users_own_module(name):
    spec = WorkloadSpec(kind="module", name=name, factory=f"{MODULES}:{name}")
    flops, saved = against_torch(*traced(spec, 0, (MODULES,)))
    assert flops == pytest.approx(1, abs=1e-6)
    assert saved == pytest.approx(1, abs=0.01)


def model_named(name):
    return next(model for model in ARCHITECTURES if model.name == name)


def test_blocks_that_are_alike_are_one_kind_and_count_as_often_as_they_stand():
    config = model_named("bert_qa").config
    spec = WorkloadSpec(kind="transformers", name="deep", config=config | {"num_hidden_layers": 7})
    task = load_task(spec, size=16)
    profile = trace_task(spec, task, ("fp32",))
    assert profile.structure == (0, *[1] * 7, 2)
    assert [layer.name for layer in profile.layers["fp32"]] == ["first", "BertLayer", "last"]
    assert profile.num_parameters == sum(parameter.numel() for parameter in task.build().parameters())


def test_dropout_on_gpus_keeps_a_byte_for_each_number_and_no_scores():
    spec, task = model_named("bert_qa").spec, load_task(model_named("bert_qa").spec, size=16)
    on = {kind: trace_task(spec, task, ("fp32",), kind) for kind in ("cpu", "cuda")}
    assert {kind: profile.traced_for for kind, profile in on.items()} == {"cpu": "cpu", "cuda": "cuda"}
    blocks = {kind: profile.layers["fp32"][1] for kind, profile in on.items()}
    scores = {kind: sum(term[0] for term in block.saved_bytes if term[2] == 2) for kind, block in blocks.items()}
    # What is left is the mask of padding, once for all heads.
    assert scores["cuda"] == 4
    assert scores["cpu"] > 4 * spec.config["num_attention_heads"]
    assert any(op.kind == "attention" for op in blocks["cuda"].operators)


def test_a_configuration_of_any_family_is_profiled_and_planned(tmp_path):
    path, profile, plan = tmp_path / "config.json", tmp_path / "model.json", tmp_path / "plan.json"
    path.write_text(json.dumps(model_named("bert_qa").config))
    shown = RUNNER.invoke(profile_app, ["model", str(path), "--task", "masked-lm", "-o", str(profile)])
    assert shown.exit_code == 0, shown.output
    options = ["--model", str(profile), "--gpus", "8", "--device", "a100-sxm-80gb", "--global-batch", "64"]
    made = RUNNER.invoke(plan_app, [*options, "-o", str(plan)])
    assert made.exit_code == 0, made.output
    file = json.loads(plan.read_text())
    assert file["workload"]["task"] == "masked-lm"
    zero = {candidate["plan"].get("zero_stage", 0) for candidate in file["candidates"]}
    assert zero >= {0, 3}
    asked = RUNNER.invoke(plan_app, [*options, "--why-not", "pp=2"])
    assert "pp=2: legal" in asked.output


def test_the_recorded_matrix_has_every_model_with_torchs_numbers():
    rows = recorded()
    assert list(rows) == [spec.name for spec, _ in models()]
    assert [row.name for row in rows.values() if row.refused] == []
    for row in rows.values():
        assert float(row.flops_over_torch) == pytest.approx(1, abs=1e-6), row.name
        # torch's recurrent layers of CPUs keep a workspace that grows in steps.
        assert float(row.saved_over_real) == pytest.approx(1, abs=0.05 if row.name in RECURRENT else 0.01), row.name


def test_a_mistake_of_ours_is_not_told_as_the_modules(monkeypatch):
    def mistaken(*_):
        raise KeyError("ours")

    monkeypatch.setattr("profiles.tracing.task_runs.cut", mistaken)
    with pytest.raises(KeyError, match="ours"):
        traced(model_named("bert_qa").spec, 16)


def test_a_module_that_is_too_large_to_be_run_says_why_it_would_have_to(monkeypatch):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, x):
            return self.linear(x).mean() * len(self.linear(x).nonzero().tolist())

    task = user_task(Counting, lambda step, samples: [{"x": torch.ones(2)} for _ in range(samples)])
    spec = WorkloadSpec(kind="module", name="counting", factory="own:counting")
    assert trace_task(spec, task, ("fp32",)).num_parameters == 3
    monkeypatch.setattr("profiles.tracing.task_runs.MOST_REAL", 2)
    with pytest.raises(InputError, match=r"too many: give .*; without: own:counting: its module or its loss does not"):
        trace_task(spec, task, ("fp32",))


@pytest.mark.parametrize("name", ["dropout", "regression"])
def test_the_recorded_matrix_is_what_its_command_gives(name):
    spec, size = next((spec, size) for spec, size in models() if spec.name == name)
    assert tried(spec, size, (MODULES,)) == replace(recorded()[name], **dict.fromkeys(COLUMNS, ""))
