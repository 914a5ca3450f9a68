"""A user's loop around an applied plan trains as a loop written by hand in plain torch, in every layout."""

import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import executor
from executor.micro_batches import first_micro_batch, split_batch
from planner.plans import Plan
from profiles.errors import InputError, PlanError
from profiles.ranks.launcher import launch
from tests.apply_entries import MOST, RATE, STEPS, batch_of, module_of, options_of, schedule_of, task_of
from tests.plan_builders import write_plan_file

HALVES = {"micro_batch_size": 2, "num_microbatches": 2, "data_parallel": 2}
WHOLE = {"micro_batch_size": 2, "num_microbatches": 4}
LAYOUTS: list[dict[str, Any]] = [
    HALVES,
    {**HALVES, "zero_stage": 1},
    {**HALVES, "zero_stage": 3, "recompute": "full"},
    {**WHOLE, "tensor_parallel": 2},
    {**WHOLE, "pipeline_parallel": 2, "schedule": "1f1b", "stage_bounds": (0, 2)},
]


def by_hand(name: str) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms and weights of plain torch in one process."""
    task = task_of(name)
    module = module_of(task)
    groups = [{"params": [own], **options_of(path, own)} for path, own in module.named_parameters()]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    schedule, losses, norms = schedule_of(optimizer), [], []
    for step in range(STEPS):
        loss = module(**batch_of(task, step)).loss
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), MOST)))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses, norms, dict(module.state_dict())


def run(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = launch("tests.apply_entries:loops", {"cases": cases}, 2, "cpu")
    return found


def case(
    name: str, layout: dict[str, Any], first: int, last: int, folder: Path, exported: Path | None
) -> dict[str, Any]:
    plan = asdict(Plan(**layout))
    return {
        "name": name, "plan": plan, "first": first, "last": last, "folder": str(folder),
        "exported": str(exported or ""),
    }  # fmt: skip


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_users_loop_trains_as_one_by_hand_and_goes_on_in_another_layout(tmp_path: Path) -> None:
    cases = []
    for number, layout in enumerate(LAYOUTS):
        following = LAYOUTS[(number + 1) % len(LAYOUTS)]
        folder, out = tmp_path / f"kept-{number}", tmp_path / f"out-{number}"
        cases.append(case("llama", layout, 0, 2, folder, None))
        cases.append(case("llama", following, 2, STEPS, folder, out))
    found = run(cases)
    assert [each.get("error") for each in found] == [None] * len(found)
    losses, norms, weights = by_hand("llama")
    assert max(norms) > MOST
    for number, (begun, ended) in enumerate(zip(found[::2], found[1::2], strict=True)):
        assert begun["losses"] + ended["losses"] == pytest.approx(losses, rel=2e-6), LAYOUTS[number]
        assert begun["norms"] + ended["norms"] == pytest.approx(norms, rel=2e-5), LAYOUTS[number]
        assert 0 < ended["measured"] < 60
        assert "a step over 1 steps" in ended["text"]
        written = load_file(tmp_path / f"out-{number}" / "model.safetensors")
        assert set(written) <= set(weights)
        for path, tensor in written.items():
            torch.testing.assert_close(tensor, weights[path], rtol=1e-4, atol=1e-5)
    again = type(module_of(task_of("llama"))).from_pretrained(tmp_path / "out-0")
    for path, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, weights[path], rtol=1e-4, atol=1e-5)


class Plain(nn.Module):
    """A module of a user's that needs nothing of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return (x - y).square().mean()


def test_one_rank_needs_no_launcher() -> None:
    torch.manual_seed(0)
    ours, theirs = Plain(), Plain()
    theirs.load_state_dict(ours.state_dict())
    job = executor.apply(Plan(micro_batch_size=2, num_microbatches=3), ours, device="cpu")
    optimizer, other = job.optimizer(torch.optim.SGD, lr=0.1), torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(3):
        batch = {"x": torch.randn(6, 4), "y": torch.randn(6, 4)}
        loss = job.step(batch)
        optimizer.step()
        wanted = theirs(**batch)
        other.zero_grad()
        wanted.backward()
        other.step()
        torch.testing.assert_close(loss, wanted.detach())
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()))


@pytest.mark.parametrize("first", [0, 2])
def test_a_loop_that_saves_goes_on_as_one_that_does_not(first: int, tmp_path: Path) -> None:
    batches = [{"x": torch.randn(2, 4), "y": torch.randn(2, 4)} for _ in range(5)]
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}

    def job_of(module: Plain) -> tuple[Any, torch.optim.Optimizer]:
        job = executor.apply(Plan(micro_batch_size=2), module, device="cpu")
        return job, job.optimizer(torch.optim.SGD, **options)

    torch.manual_seed(0)
    theirs, ours, again = Plain(), Plain(), Plain()
    ours.load_state_dict(theirs.state_dict())
    other = torch.optim.SGD(theirs.parameters(), **options)
    job, optimizer = job_of(ours)
    for step, batch in enumerate(batches):
        if step == first:
            # Before its first step as well, when the optimizer holds nothing yet.
            job.save(tmp_path, {"at": step})
        job.step(batch)
        optimizer.step()
        other.zero_grad()
        theirs(**batch).backward()
        other.step()
    resumed, after = job_of(again)
    assert resumed.load(tmp_path) == {"at": first}
    assert resumed.num_steps == first
    for batch in batches[first:]:
        resumed.step(batch)
        after.step()
    for module in (ours, again):
        torch.testing.assert_close(dict(module.named_parameters()), dict(theirs.named_parameters()))


def test_a_loop_goes_on_whose_module_has_parameters_that_it_does_not_use(tmp_path: Path) -> None:
    def job_of() -> tuple[Any, Any]:
        torch.manual_seed(0)
        module = Plain()
        module.spare = nn.Linear(4, 4)
        job = executor.apply(Plan(), module, device="cpu")
        return job, job.optimizer(torch.optim.AdamW, lr=0.1)

    batch = {"x": torch.ones(1, 4), "y": torch.zeros(1, 4)}
    job, optimizer = job_of()
    job.step(batch)
    optimizer.step()
    job.save(tmp_path)
    resumed, after = job_of()
    resumed.load(tmp_path)
    for one, own in ((job, optimizer), (resumed, after)):
        one.step(batch)
        own.step()
    torch.testing.assert_close(dict(resumed.module.named_parameters()), dict(job.module.named_parameters()))
    assert len(after.state) == len(optimizer.state) == 4


def test_what_cannot_be_applied_is_said(tmp_path: Path) -> None:
    module = Plain()
    with pytest.raises(InputError, match="the model is a str"):
        executor.apply(Plan(), "llama", device="cpu")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="is for 2 ranks, the job has 1"):
        executor.apply(Plan(data_parallel=2), module, device="cpu")
    with pytest.raises(PlanError, match="seen in a batch: give example=batch"):
        executor.apply(
            Plan(pipeline_parallel=2, schedule="1f1b", stage_bounds=(0, 2), num_microbatches=2), module, device="cpu"
        )
    with pytest.raises(PlanError, match="Plain has 40: plan for this module"):
        executor.apply(write_plan_file(tmp_path / "plan.json", Plan()), module, device="cpu")
    with pytest.raises(InputError, match="weights='weights' is for a module on the meta device: Plain has weights"):
        executor.apply(Plan(), module, weights="weights", device="cpu")
    job = executor.apply(Plan(micro_batch_size=2), module, device="cpu")
    with pytest.raises(InputError, match="no optimizer yet"):
        job.save(tmp_path)
    with pytest.raises(InputError, match="the batch has 3 samples: a replica takes 2 a step"):
        job.step({"x": torch.randn(3, 4), "y": torch.randn(3, 4)})


def test_batches_of_any_structure_are_cut() -> None:
    batch = {"x": torch.arange(4), "names": ["a", "b", "c", "d"], "scale": 2.0, "pair": (torch.zeros(4, 1), None)}
    first, second = split_batch(batch, 2, 2)
    assert (first["names"], second["x"].tolist(), second["scale"]) == (["a", "b"], [2, 3], 2.0)
    assert (second["pair"][0].shape, second["pair"][1]) == ((2, 1), None)


IN_SLURM = """
import torch
import executor
from executor.micro_batches import first_micro_batch
from planner.plans import Plan
from tests.test_apply import Plain

torch.manual_seed(0)
with executor.apply(Plan(micro_batch_size=2, data_parallel=2), Plain(), device="cpu") as job:
    optimizer = job.optimizer(torch.optim.SGD, lr=0.1)
    batch = {"x": torch.ones(2, 4) * (1 + job.replica), "y": torch.zeros(2, 4)}
    losses = []
    for _ in range(2):
        losses.append(float(job.step(batch)))
        optimizer.step()
    print(job.rank.rank, job.replica, *losses)
"""


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_processes_of_srun_are_ranks() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {
        "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port,
    }  # fmt: skip
    around = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", IN_SLURM],
            cwd=Path(__file__).parents[1],
            env={**around, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=180)[0].split() for process in processes]
    assert [own[:2] for own in said] == [["0", "0"], ["1", "1"]]
    torch.manual_seed(0)
    module, losses = Plain(), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x = torch.tensor([1.0, 1.0, 2.0, 2.0])[:, None].expand(4, 4)
    for _ in range(2):
        optimizer.zero_grad()
        loss = module(x, torch.zeros(4, 4))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    for own in said:
        assert [float(word) for word in own[2:]] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize(("samples", "taken"), [(3, 3), (4, 4), (7, 4), (8, 4), (30, 4)])
def test_an_example_may_have_any_number_of_samples(samples: int, taken: int) -> None:
    example = {"x": torch.arange(samples * 2.0).view(samples, 2), "y": list(range(samples)), "scale": 2.0}
    first = first_micro_batch(example, 4, 2)
    assert torch.equal(first["x"], example["x"][:taken])
    assert (first["y"], first["scale"]) == (list(range(taken)), 2.0)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_ranks_that_give_other_weights_are_told_so() -> None:
    """Nothing sends the first rank's, as DDP does: replicas that begin apart would stay apart."""
    apart, alike = launch("tests.apply_entries:apply_apart", "llama", 2, "cpu")
    assert "on rank 1 are not those on rank 0: call torch.manual_seed(0) before it is built" in apart
    assert alike == ""
