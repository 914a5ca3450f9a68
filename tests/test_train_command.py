"""`execute --train` as its user runs it: settings in a file, checkpoints, a run file that `compare` reads, sinks."""

import importlib.machinery
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from executor.command import app
from executor.run.follow import Follower
from executor.run.measurement import RunFile
from executor.run.sinks import check_sinks, opened
from planner.plans import Plan
from profiles import artifacts
from profiles.errors import EnvironmentFailure
from profiles.ranks.rank import Report
from tests.plan_builders import LLAMA, write_plan_file

RUNNER = CliRunner()
HALVES = Plan(data_parallel=2, micro_batch_size=4)
SETTINGS = """
max_tokens = 1536
[optimizer]
name = "sgd"
lr = 0.05
options = {momentum = 0.9}
[schedule]
name = "linear"
warmup_steps = 2
[data]
held_out = 0.1
workers = 1
[evaluation]
every = 4
[log]
every = 2
"""


def ends(*arguments: Any, code: int = 0) -> str:
    result = RUNNER.invoke(app, [str(word) for word in arguments], terminal_width=400)
    # The command's main turns what is raised into a sentence and this code.
    assert getattr(result.exception, "exit_code", result.exit_code) == code, result.output
    return f"{result.output}{result.exception}"


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_training_is_logged_kept_and_gone_on_with(tmp_path: Path) -> None:
    plan, settings = write_plan_file(tmp_path / "plan.json", HALVES), tmp_path / "train.toml"
    settings.write_text(SETTINGS)
    kept = ("--checkpoint", tmp_path / "kept", "--checkpoint-every", 4, "--runs", tmp_path / "runs")
    said = ends(plan, "--train", settings, "-o", tmp_path / "run.json", *kept, "-v")
    assert "step: 4  evaluation loss: " in said
    run = artifacts.read(tmp_path / "run.json", "run", RunFile).runs[0].measurement
    # 1,536 tokens are six steps of 8 samples of 32.
    assert (len(run.losses), run.loss_check.status) == (6, "passed")
    assert [each.step for each in run.evaluations] == [4, 6]
    assert run.step_seconds
    assert run.losses[-1] < run.losses[0]
    (log,) = (tmp_path / "runs").glob("*.log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert [round(line["lr"], 6) for line in lines if "loss" in line] == [0.05, 0.0375, 0.0125]
    assert "ask for more steps" in ends(plan, "--train", settings, *kept, "--resume", code=2)
    # Something is done after every step, and all are measured all the same.
    settings.write_text(SETTINGS.replace("1536", "2048").replace("every = 4", "every = 1"))
    ends(plan, "--train", settings, *kept, "--resume", "-o", tmp_path / "more.json")
    more = artifacts.read(tmp_path / "more.json", "run", RunFile).runs[0].measurement
    assert (more.first_step, len(more.losses), len(more.step_seconds)) == (6, 2, 2)


def test_what_settings_name_and_is_not_there_is_said_before_ranks_start(tmp_path: Path) -> None:
    plan, settings = write_plan_file(tmp_path / "plan.json", HALVES), tmp_path / "train.toml"
    split = write_plan_file(tmp_path / "split.json", Plan(data_parallel=2, zero_stage=3, micro_batch_size=4))

    def said(text: str, of: Path = plan, code: int = 2, *more: Any) -> str:
        settings.write_text(f"max_steps = 3\n{text}")
        return ends(of, "--train", settings, *more, code=code)

    assert "No such file" in said("[data]\ntrain = 'none.bin'")
    assert "has no model.safetensors" in said("weights = 'none'")
    assert "give [data] evaluation or held_out" in said("[evaluation]\nevery = 2")
    assert "--trust-module json" in said("[data]\ntrain = 'json:loads'")
    assert "splits them" in said("[optimizer]\nname = 'adafactor'", split)
    assert "for more than the 3 steps of the training" in said("[schedule]\nwarmup_steps = 4")
    assert "unexpected keyword argument" in said("[optimizer]\noptions = {beta = 0.9}")
    assert "a key of its own" in said("[optimizer]\noptions = {lr = 0.9}")
    kept = ("--checkpoint", tmp_path / "kept")
    assert "leave --checkpoint out" in said("[optimizer]\nname = 'adafactor'", plan, 2, *kept)
    assert "wandb, which is not installed" in said("[log]\nsinks = ['wandb']", plan, 5)
    assert "--steps" in ends(plan, "--train", settings, "--steps", 3, code=2)
    (tmp_path / "rows").mkdir()
    assert "pip install 'trainwright[datasets]'" in said("[data]\ntrain = 'rows'", plan, 5)


def test_settings_import_no_module_that_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unasked.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    settings = tmp_path / "train.toml"
    for name, spec in (("layers", LLAMA), ("task", replace(LLAMA, task="causal-lm"))):
        plan = write_plan_file(tmp_path / f"{name}.json", HALVES, spec=spec)
        for key in ("train", "evaluation"):
            settings.write_text(f"max_steps = 3\n[data]\n{key} = 'unasked:batches'")
            assert "--trust-module unasked" in ends(plan, "--train", settings, code=2)
    assert "unasked" not in sys.modules


def test_numbers_go_where_they_are_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            if step == 2:
                raise ConnectionError("no way to the server")
            told.append((step, values["loss"]))

        def finish(self, exit_code: int) -> None:
            told.append(exit_code)

    library: Any = ModuleType("wandb")
    library.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    library.init = lambda **given: told.append(given["config"]["lr"]) or Run()
    monkeypatch.setitem(sys.modules, "wandb", library)
    check_sinks(["wandb"])
    with opened(["wandb"], "model", {"lr": 0.1}) as sinks:
        follow = Follower(None, lambda *_: None, False, None, sinks)  # type: ignore[arg-type]
        follow(Report(fraction=0.1, text="", values={"step": 1, "loss": 2.5, "plan": "dp2"}))
        follow(Report(fraction=0.1, text="", values={"step": 2, "loss": 2.0}))
        follow(Report(fraction=0.1, text="", values={"step": 3, "loss": 1.5}))
    assert told == [0.1, (1, 2.5), 0]
    # A training goes on without it, its log too, and says so at its end.
    assert follow.failure is None
    assert isinstance(sinks.failure, EnvironmentFailure)
    assert "no way to the server" in str(sinks.failure)
    with pytest.raises(ValueError, match="diverged"), opened(["wandb"], "model", {"lr": 0.2}):
        raise ValueError("diverged")
    assert told[-2:] == [0.2, 1]
