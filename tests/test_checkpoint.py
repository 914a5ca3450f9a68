"""Checkpoints: what goes on from one is what would have gone on without, on the same layout or on another."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from typer.testing import CliRunner

from executor.command import app
from executor.run.batches import default_text, load_text
from executor.run.checkpoint import (
    Checkpoints,
    Progress,
    check_progress,
    checkpoints_of,
    latest,
    read_progress,
)
from executor.run.measurement import RunFile
from executor.run.prepare import RunOptions, prepare
from executor.trainer import Trainer
from planner.plans import Plan
from profiles import artifacts
from profiles.errors import ArtifactError, InputError
from profiles.ranks.launcher import launch
from profiles.ranks.rank import Rank
from profiles.workloads.loading import load_workload
from tests.parity_cases import two_ranks
from tests.plan_builders import LLAMA, write_plan_file

RUNNER = CliRunner()
DATA = Plan(data_parallel=2, micro_batch_size=4)
STAGES = Plan(pipeline_parallel=2, schedule="1f1b", micro_batch_size=2, num_microbatches=4, stage_bounds=(0, 3))
# AdamW divides by the root of small numbers: what another order of sums changes grows from step to step.
TOLERANCE = 1e-4


def mean(ranks: list[dict[str, Any]], which: str) -> list[float]:
    """Losses of the global batch: replicas have slices of it, tensor ranks all of it."""
    rows = [rank[which] for rank in ranks if rank[which][0] is not None]
    return [sum(values) / len(values) for values in zip(*rows, strict=True)]


def check_pairs(pairs: list[tuple[Plan, Plan]], folder: Path, model: str = "llama", num_ranks: int = 2) -> None:
    payload = {"pairs": [(asdict(first), asdict(second)) for first, second in pairs], "folder": str(folder)}
    results = launch("tests.checkpoint_entries:save_and_go_on", payload | {"model": model}, num_ranks, "cpu")
    for (first, second), ranks in zip(pairs, results, strict=True):
        what = f"{first.id} -> {second.id}"
        after, restored = mean(ranks, "after"), mean(ranks, "restored")
        assert restored == pytest.approx(after, rel=TOLERANCE), what
        assert after[0] < mean(ranks, "before")[0], what


def layouts(step: int) -> list[Plan]:
    """Every way of using two ranks that parity is tested on."""
    cases = [p for name, p in two_ranks(complete=False) if name == "llama" and p.precision == "fp32"]
    return [plan for plan in cases if plan.recompute == "none"][::step]


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_another_layout_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    own = layouts(3)
    check_pairs([(DATA, DATA), *zip(own, own[1:] + own[:1], strict=True)], tmp_path)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_experts_are_saved_from_wherever_they_are(tmp_path: Path) -> None:
    shared = replace(DATA, expert_parallel=2)
    check_pairs([(shared, DATA), (DATA, shared)], tmp_path, "mixtral")


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_fused_weights_are_whole_in_any_layout(tmp_path: Path) -> None:
    split = Plan(tensor_parallel=2, micro_batch_size=4, num_microbatches=2)
    check_pairs([(split, DATA), (DATA, split), (split, replace(DATA, zero_stage=3))], tmp_path, "gpt2")


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_replicated_experts_are_saved_once(tmp_path: Path) -> None:
    plans = [Plan(data_parallel=4, micro_batch_size=2, expert_parallel=degree) for degree in (1, 2, 4)]
    check_pairs([*zip(plans, plans[1:] + plans[:1], strict=True)], tmp_path, "mixtral", 4)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_every_layout_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    own = layouts(1)
    check_pairs([*zip(own, own, strict=True), *zip(own, own[1:] + own[:1], strict=True)], tmp_path)


def execute(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "executor", *arguments, "--warmup", "0"]


def losses_of(path: Path) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    (run,) = artifacts.read(path, "run", RunFile).runs
    return run.measurement.first_step, run.measurement.losses_before, run.measurement.losses


def on_one_device(num_steps: int) -> list[float]:
    """Losses of so many steps that nothing disturbs."""
    here = Rank(rank=0, local_rank=0, num_ranks=1, device=torch.device("cpu"))
    text, samples = load_text(default_text(), 32, 0), DATA.global_batch_size
    trainer = Trainer(Plan(micro_batch_size=samples), load_workload(LLAMA), here, 0, None)
    return [float(trainer.step(*text.batch(step, samples))[0]) for step in range(num_steps)]  # type: ignore[arg-type]


@pytest.mark.gloo
def test_a_killed_rank_starts_again_from_the_last_checkpoint(tmp_path: Path) -> None:
    plan, broken, saved = (tmp_path / name for name in ("plan.json", "broken.json", "saved"))
    write_plan_file(plan, DATA)
    process = subprocess.Popen(
        execute(
            str(plan), "--steps", "30", "-o", str(broken), "--checkpoint", str(saved), "--checkpoint-every", "10",
            "--max-restarts", "1", "--runs", str(tmp_path / "runs"),
        ),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while latest(saved) is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = psutil.Process(process.pid).children(recursive=True)
    next(rank for rank in ranks if "profiles.ranks.start" in " ".join(rank.cmdline())).kill()
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    first, before, losses = losses_of(broken)
    # Told when it happens and with the result, and kept.
    notice = f"a rank died and all were restarted (restart 1), resuming from {saved / f'step-{first:08d}'}"
    assert " ".join(said.split()).count(f"note: {notice}") == 2
    assert artifacts.read(broken, "run", RunFile).notes[-1] == notice
    assert first > 0
    assert first % 10 == 0
    # Thirty steps and three of warm-up, before and after the restart together.
    undisturbed = on_one_device(33)
    assert [*before, *losses] == pytest.approx(undisturbed, rel=TOLERANCE)
    # The stages of a pipeline go on from what replicas had saved.
    write_plan_file(plan, STAGES)
    again = Checkpoints(folder=str(saved), every=10, resume=True)
    last = first + len(losses) - (first + len(losses)) % 10
    assert (
        f"resuming from step {last}, {latest(saved)}" in prepare(plan, RunOptions(steps=100, checkpoints=again)).notes
    )


def test_only_whole_checkpoints_are_found(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    for name in ("step-00000005", "step-00000010", ".step-00000015.part", "step-12"):
        (tmp_path / name).mkdir()
    assert latest(tmp_path) == tmp_path / "step-00000010"
    with pytest.raises(ArtifactError, match="not a checkpoint of this program"):
        read_progress(tmp_path / "step-00000010")
    (tmp_path / "step-00000010" / "progress.json").write_text(json.dumps({"step": 1, "colour": "blue"}))
    with pytest.raises(ArtifactError):
        read_progress(tmp_path / "step-00000010")


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"model": "other"}, {"global_batch_size": 4}, {"fused_parts_split": 2}]
)
def test_a_checkpoint_of_another_run_is_refused(change: dict[str, Any]) -> None:
    own = Progress(step=5, model="llama", seed=0, global_batch_size=8)
    check_progress(Path("here"), own, own)
    with pytest.raises(InputError, match=f"here has {next(iter(change))}="):
        check_progress(Path("here"), Progress(**{**asdict(own), **change}), own)


def test_options_that_need_a_folder_are_refused() -> None:
    assert checkpoints_of(None, 10, resume=False, max_restarts=0) is None
    with pytest.raises(InputError, match="--checkpoint DIR"):
        checkpoints_of(None, 10, resume=True, max_restarts=0)


def test_a_run_that_starts_anew_leaves_another_runs_checkpoints_alone(tmp_path: Path) -> None:
    plan, saved = write_plan_file(tmp_path / "plan.json", DATA), tmp_path / "saved"
    (saved / "step-00000090").mkdir(parents=True)
    done = RUNNER.invoke(app, [str(plan), "--checkpoint", str(saved)])
    assert isinstance(done.exception, InputError)
    assert "has step-00000090: give --resume" in str(done.exception)


def test_checkpoints_are_of_one_plan(tmp_path: Path) -> None:
    plan = write_plan_file(tmp_path / "plan.json", DATA, STAGES)
    done = RUNNER.invoke(app, [str(plan), "--top", "2", "--checkpoint", str(tmp_path / "saved")])
    assert isinstance(done.exception, InputError)
    assert "--top 1" in str(done.exception)
