"""Tasks: a module as its author wrote it trains in every layout as one process trains it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from executor.axes.optimizer import LEARNING_RATE
from executor.axes.task_part import split_of_task
from executor.run.checkpoint_index import read_index
from executor.run.measurement import RunFile
from planner.plans import Plan
from profiles import artifacts
from profiles.errors import PlanError
from profiles.models.profile import WorkloadSpec
from profiles.ranks.launcher import launch
from profiles.workloads.randomness import silence
from tests.commands import outcome
from tests.plan_builders import write_plan_file
from tests.task_entries import BY_NAME, MODELS, SEED, subject

LAYOUTS: list[dict[str, Any]] = [
    {},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"recompute": "full"},
    {"zero_stage": 3, "recompute": "full"},
    {"pipeline_parallel": 2},
    {"pipeline_parallel": 2, "recompute": "full"},
]
USUAL = ("bert_qa", "t5")
# Of which nothing can be split: no two linears behind one another, or what is between them needs all features.
WHOLE = (
    "mamba2", "resnet", "efficientnet", "lstm", "gru", "translator", "convolutions", "depthwise", "unet", "autoencoder",
    "towers",
)  # fmt: skip
SPLIT = tuple(name for name in MODELS if name not in WHOLE)
TENSOR: list[dict[str, Any]] = [
    {"tensor_parallel": 2},
    {"tensor_parallel": 2, "recompute": "full"},
]


def plan(**fields: Any) -> Plan:
    if "pipeline_parallel" in fields:
        # Where the stages begin is for each model to say.
        return Plan(**fields, schedule="1f1b", micro_batch_size=2, num_microbatches=4, stage_bounds=(0, 2))
    if "tensor_parallel" in fields:
        return Plan(**fields, micro_batch_size=2, num_microbatches=4)
    return Plan(data_parallel=2, micro_batch_size=2, num_microbatches=2, **fields)


def check(names: list[str], layouts: list[dict[str, Any]]) -> None:
    cases = [(name, [asdict(plan(**fields)) for fields in layouts]) for name in names]
    results = launch("tests.task_entries:train", {"cases": cases}, 2, "cpu")
    assert [result["case"] for result in results if result["status"] != "passed"] == [], results
    if "tensor_parallel" in layouts[0]:
        # Sums of two halves, in fp32; points of masks that losses are taken at depend on the last bit.
        assert max(result["loss"] for result in results) < 1e-6
        assert max(result["norm"] for result in results) < 1e-5
    for name, result in zip(names, results[:: len(layouts)], strict=True):
        if name in USUAL:
            assert result["reference"] == pytest.approx(plain_losses(name), rel=1e-6)


def plain_losses(name: str) -> list[float]:
    """Losses of plain torch, which knows nothing of the executor, micro-batch by micro-batch without dropout."""
    task = subject(name)[0].task
    assert task is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = task.build()
    silence(model)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE), []
    for step in range(3):
        samples, total = task.batches(step, 8), 0.0
        for start in range(0, 8, 2):
            loss = model(**task.collate(samples[start : start + 2])).loss / 4
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_transformers_own_modules_train_in_layouts() -> None:
    check(list(USUAL), [LAYOUTS[0], LAYOUTS[5], LAYOUTS[7]])


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_linears_are_split_in_pairs() -> None:
    # A fused linear that is transposed, biases of heads that another block makes, and those of a table.
    check(["gpt2", "t5", "swin"], [TENSOR[1]])


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
@pytest.mark.parametrize("name", SPLIT)
def test_every_model_with_pairs_is_split(name: str) -> None:
    check([name], TENSOR)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_models_without_pairs_are_refused_by_name(name: str) -> None:
    task = subject(name)[0].task
    assert task is not None
    torch.manual_seed(SEED)
    with pytest.raises(PlanError, match="can be split in pairs"):
        split_of_task(task.build().train(), task, 2)


def check_checkpoints(path: Path, model: str, pairs: list[tuple[Plan, Plan]], ranks: int) -> None:
    told = {"model": model, "pairs": [[asdict(plan) for plan in pair] for pair in pairs], "folder": str(path)}
    for before, after in launch("tests.task_entries:save_and_go_on", told, ranks, "cpu"):
        assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_a_split_task_goes_on_in_another_layout(tmp_path: Path) -> None:
    # Parts of queries, keys and values stand rank by rank in one weight, and apart in the checkpoint.
    split, sharded = plan(tensor_parallel=2), plan(zero_stage=3)
    check_checkpoints(tmp_path, "gpt2", [(split, sharded), (sharded, split)], 2)
    index = read_index(max((tmp_path / "0").glob("step-*")))
    pieces = index.tensors["model.transformer.h.0.attn.c_attn.weight"].pieces
    assert sorted(piece.offsets for piece in pieces) == [(0, 16 * at) for at in range(6)]


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_a_split_task_is_sharded_too(tmp_path: Path) -> None:
    both = Plan(data_parallel=2, tensor_parallel=2, zero_stage=3, micro_batch_size=2, num_microbatches=2)
    whole = Plan(data_parallel=4, micro_batch_size=2, num_microbatches=1)
    check_checkpoints(tmp_path, "glm4", [(both, whole), (whole, both)], 4)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_stages_have_replicas() -> None:
    plans = [
        Plan(data_parallel=2, **fields, pipeline_parallel=2, schedule="1f1b", stage_bounds=(0, 2), micro_batch_size=2,
             num_microbatches=2)
        for fields in ({}, {"zero_stage": 1})
    ]  # fmt: skip
    results = launch("tests.task_entries:train", {"cases": [("gpt2", [asdict(plan) for plan in plans])]}, 4, "cpu")
    assert [result["status"] for result in results] == ["passed"] * 2, results


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_every_architecture_trains_in_every_layout(name: str) -> None:
    check([name], LAYOUTS)


def executed(path: Path, *options: object) -> RunFile:
    few = () if "--steps" in options else ("--steps", 1)
    code, said = outcome("execute", path, "-o", path.parent / "run.json", *few, *options)
    assert code == 0, said
    return artifacts.read(path.parent / "run.json", "run", RunFile)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_users_task_is_executed_from_a_plan_file(tmp_path: Path) -> None:
    spec = WorkloadSpec(kind="module", name="tower", factory="tests.own_task_module:tower", task="tower")
    plans = [plan(), plan(zero_stage=3, recompute="full")]
    path = write_plan_file(tmp_path / "plan.json", *plans, spec=spec, num_layers=5)
    result = executed(path, "--top", 2, "--trust-module", "tests.own_task_module")
    for run in result.runs:
        # Dropout of a function says nothing of itself, and is found all the same.
        assert run.measurement.loss_check.status == "passed"
        assert run.measurement.loss_check.reason.endswith("compared with dropout off")


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_task_goes_on_in_another_layout_with_other_data_and_is_reported(tmp_path: Path) -> None:
    spec = WorkloadSpec(kind="module", name="tower", factory="tests.own_task_module:tower", task="tower")
    path, trust = tmp_path / "plan.json", ("--trust-module", "tests.own_task_module")
    kept = ("--checkpoint", tmp_path / "kept", "--checkpoint-every", 2, "--data", "tests.own_task_module:samples")
    ends = []
    on = (*kept, "--resume")
    for fields, steps, more in (({}, 6, ()), ({}, 1, kept), ({"zero_stage": 3}, 3, on), ({}, 4, on)):
        write_plan_file(path, plan(**fields), spec=spec, num_layers=5)
        ends.append(executed(path, "--warmup", 0, *trust, *more, "--steps", steps).runs[0].measurement)
    whole, first, rest, last = ends
    # Three steps of warm-up, and --steps after them: where the run ends, not how many it takes.
    assert [(end.first_step, len(end.losses)) for end in ends] == [(0, 9), (0, 4), (4, 2), (6, 1)]
    assert last.losses_before == pytest.approx(whole.losses[:6], rel=1e-5)
    code, said = outcome("execute", path, "--warmup", 0, *trust, *on, "--steps", 3)
    assert (code, "is from step 6, but the run ends with step 6: ask for more steps" in said) == (2, True), said
    assert first.losses == pytest.approx(whole.losses[: len(first.losses)], rel=1e-6)
    # Dropout depends on the step and the samples, so that a run that goes on draws what one without a break draws.
    assert [*rest.losses, *last.losses] == pytest.approx(whole.losses[4:7], rel=1e-5)
    index = read_index(max((tmp_path / "kept").glob("step-*")))
    assert {name.removeprefix("model.") for name in index.tensors if name.startswith("model.")} == {
        f"{place}.{part}" for place in ("layers.0.0", "layers.1.0", "layers.2.0", "head") for part in ("weight", "bias")
    }
    code, said = outcome("compare", tmp_path / "run.json", "-o", tmp_path / "page.html")
    assert code == 0, said


@pytest.mark.parametrize(
    "fields", [{"precision": "fp8"}, {"compiled": True}, {"tensor_parallel": 2}, {"context_parallel": 2}]
)
def test_what_a_task_cannot_do_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    spec = WorkloadSpec(kind="module", name="tower", factory="tests.own_task_module:tower", task="tower")
    two = {} if 2 in fields.values() else {"data_parallel": 2}
    path = write_plan_file(tmp_path / "plan.json", Plan(**two, **fields), spec=spec, num_layers=5)
    code, said = outcome("execute", path, "--trust-module", "tests.own_task_module")
    assert code == 2
    assert next(iter(fields)) in said


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_what_is_not_split_is_said(tmp_path: Path) -> None:
    spec = WorkloadSpec(kind="module", name="gpt", factory="tests.matrix.user_modules:gpt", task="gpt")
    path = write_plan_file(tmp_path / "plan.json", plan(tensor_parallel=2), spec=spec, num_layers=6)
    result = executed(path, "--trust-module", "tests.matrix.user_modules")
    assert result.runs[0].measurement.loss_check.status == "passed"
    # It has its number of heads in its code.
    said = "on every rank whole: blocks.0 splits into no equal parts: blocks.0.out needs the features of all and 3 more"
    assert any(said in note for note in result.notes)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_modules_that_take_no_text_learn_from_data_of_their_own(tmp_path: Path) -> None:
    spec = WorkloadSpec(kind="module", name="mlp", factory="tests.own_task_module:Regression")
    path = write_plan_file(tmp_path / "plan.json", plan(), spec=spec, num_layers=3)
    trust = ("--trust-module", "tests.own_task_module")
    code, said = outcome("execute", path, *trust)
    assert code == 2
    assert "give --data FILE.npz with arrays `inputs` and `targets`, or --data package.module:batches" in said
    inputs = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=inputs.sum(1))
    for data in (tmp_path / "data.npz", "tests.own_task_module:pairs"):
        (run,) = executed(path, *trust, "--data", data).runs
        assert run.measurement.loss_check.status == "passed"
