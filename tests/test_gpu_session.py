"""The session on a borrowed GPU: its choices, its time, and its dry run on a CPU, which takes the same road."""

import json

import pytest

from executor.run.measurement import RunFile
from profiles import artifacts
from tests.gpu_session import TOGETHER, Session, choices, groups, main, subject_of
from tests.machine_builders import machine


def test_every_choice_is_tried_once_and_few_are_lost_together(tmp_path):
    wanted = choices(subject_of(tmp_path, is_dry=False))
    tried = [choice for group in groups(wanted) for choice in group]
    assert sorted(choice.name for choice in tried) == sorted({choice.name for choice in wanted})
    assert len(wanted) >= 15
    for group in groups(wanted):
        assert len(group) <= TOGETHER
        assert len({(choice.plan.precision, choice.plan.compiled, choice.attention) for choice in group}) == 1
    plans = [choice.plan for choice in wanted]
    # What the session is to tell apart.
    assert {plan.precision for plan in plans} == {"fp32", "tf32", "bf16", "fp8"}
    assert {plan.recompute for plan in plans} == {"none", "selective", "full"}
    assert {plan.compiled for plan in plans} == {False, True}
    assert {choice.attention for choice in wanted} == {"", "efficient", "cudnn", "math"}
    assert {plan.micro_batch_size for plan in plans} == {1, 2, 4, 8}
    assert {plan.global_batch_size for plan in plans} == {8}


def test_what_there_is_no_time_for_is_named_and_leaves_no_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main([str(tmp_path), "--dry-run", "--budget", "0"]) == 1
    said = capsys.readouterr().out
    assert "skipped: tests: " in said
    assert "skipped: profile: " in said
    assert "choices: the machine was not profiled" in said
    assert {path.name for path in tmp_path.iterdir()} <= {
        "model.json", "versions.json", "table.txt", "nvidia-smi.txt", "nvidia-smi-q.txt",
    }  # fmt: skip


def test_a_step_that_outlasts_the_time_is_ended(tmp_path):
    session = Session(tmp_path, subject_of(tmp_path, is_dry=True), budget=18.0)
    assert not session.run("slow", 1.0, "tests.gpu_slow")
    assert session.skipped == ["slow: the time was over"]
    assert "begun" in (tmp_path / "slow.log").read_text()


@pytest.mark.gloo
def test_a_dry_run_predicts_runs_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    artifacts.write(tmp_path / "machine.json", "machine-profile", machine())
    (tmp_path / "tests-passed").touch()
    options = [str(tmp_path), "--dry-run", "--budget", "500", "--only", "mb4x2 (bf16|tf32)$"]
    assert main(options) == 0
    [result] = tmp_path.glob("run-*.json")
    [run] = artifacts.read(result, "run", RunFile).runs
    assert run.measurement.loss_check.status == "passed"
    table = (tmp_path / "table.txt").read_text()
    assert run.plan.id in table
    assert "skipped: single mb4x2 tf32: precision tf32 is a mode of GPUs" in table
    assert json.loads((tmp_path / "versions.json").read_text())["device_kind"] == "cpu"
    before = result.stat().st_mtime_ns
    assert main(options) == 0
    assert result.stat().st_mtime_ns == before
