"""The program for Ray Train, with a stand-in for Ray: what it asks for, and how each worker starts its rank."""

import ast
import runpy
import sys
import types
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from typer.testing import CliRunner

from executor.command import app
from planner.plans import Plan
from profiles.errors import InputError
from profiles.ranks.environment import TORCHRUN, allocator_environment
from tests.plan_builders import LLAMA, write_plan_file

# What Ray 2.60 has under these names, which the program may use and nothing else.
FIELDS = {
    "ScalingConfig": {"num_workers", "use_gpu", "resources_per_worker", "placement_strategy"},
    "RunConfig": {"name", "failure_config"},
    "FailureConfig": {"max_failures"},
    "TorchConfig": {"backend"},
    "TorchTrainer": {"train_loop_config", "torch_config", "scaling_config", "run_config"},
}


@dataclass
class Job:
    """What a program asks of Ray, and what its workers start."""

    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: list[tuple[list[str], str, dict[str, str]]] = field(default_factory=list)


@dataclass
class Place:
    number: int
    num_ranks: int
    per_node: int

    def get_world_rank(self) -> int:
        return self.number

    def get_world_size(self) -> int:
        return self.num_ranks

    def get_local_rank(self) -> int:
        return self.number % self.per_node

    def get_local_world_size(self) -> int:
        return self.per_node

    def get_node_rank(self) -> int:
        return self.number // self.per_node


def emitted(path: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, [str(path), "--emit", "ray", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def run(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, per_node: int = 2, codes: tuple[int, ...] = ()
) -> Job:
    """Run the program: its workers one after the other, each of which starts a rank that ends with a code."""
    job, told = Job(), list[Any]()

    def asking(name: str) -> Any:
        def ask(*given: Any, **fields: Any) -> Any:
            assert set(fields) <= FIELDS[name], fields
            job.asked[name] = fields
            return types.SimpleNamespace(fit=lambda: fit(given[0], fields["train_loop_config"]))

        return ask

    def fit(rank: Any, given: dict[str, Any]) -> None:
        for number in range(job.asked["ScalingConfig"]["num_workers"]):
            train.get_context = lambda number=number: Place(number, job.asked["ScalingConfig"]["num_workers"], per_node)
            # As `from` has taken it.
            rank.__globals__["get_context"] = train.get_context
            rank(given)

    def broadcast(values: list[Any]) -> None:
        told.append(values[:])
        values[:] = told[0]

    def start(words: list[str], cwd: str, env: dict[str, str]) -> Any:
        job.started.append((words, cwd, env))
        return types.SimpleNamespace(returncode=codes[len(job.started) - 1] if codes else 0)

    ray, train, of_torch = types.ModuleType("ray"), types.ModuleType("ray.train"), types.ModuleType("ray.train.torch")
    ray.util = types.SimpleNamespace(get_node_ip_address=lambda: f"10.0.0.{len(told) // per_node + 1}")
    train.ScalingConfig, train.RunConfig, train.FailureConfig = map(asking, list(FIELDS)[:3])
    train.get_context = None
    of_torch.TorchConfig, of_torch.TorchTrainer = map(asking, list(FIELDS)[3:])
    for name, module in (("ray", ray), ("ray.train", train), ("ray.train.torch", of_torch)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr("subprocess.run", start)
    program = folder / "job.py"
    program.write_text(text)
    runpy.run_path(str(program), run_name="__main__")
    return job


@pytest.fixture
def on_gpus(tmp_path: Path) -> Path:
    plan = Plan(data_parallel=4, tensor_parallel=2, micro_batch_size=1, vocab_parallel=True)
    return write_plan_file(
        tmp_path / "plan.json", plan, machine_name="h100-sxm", machine_device_kind="cuda", machine_origin="datasheet"
    )


def test_ray_is_asked_for_a_worker_with_a_device_for_each_rank(
    on_gpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run(emitted(on_gpus, "--gpus-per-node", "4", "--steps", "7"), tmp_path, monkeypatch, per_node=4)
    scaling = job.asked["ScalingConfig"]
    assert (scaling["num_workers"], scaling["use_gpu"], scaling["resources_per_worker"]["GPU"]) == (8, True, 1)
    # Where messages go by NVLink, Ray's own group is of CPUs: a group on GPUs would hold memory of each.
    assert job.asked["TorchConfig"] == {"backend": "gloo"}
    assert job.asked["FailureConfig"] == {"max_failures": 0}


def test_each_worker_starts_its_rank_as_torchrun_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=4, micro_batch_size=1))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    job = run(emitted(path, "--gpus-per-node", "2", "--steps", "7"), tmp_path, monkeypatch)
    assert not job.asked["ScalingConfig"]["use_gpu"]
    assert len(job.started) == 4
    for number, (words, folder, environment) in enumerate(job.started):
        assert words[:3] == [sys.executable, "-m", "executor"]
        assert words[3:6] == [str(path), "--steps", "7"]
        assert folder == str(tmp_path)
        assert (environment["RANK"], environment["WORLD_SIZE"]) == (str(number), "4")
        assert (environment["LOCAL_RANK"], environment["LOCAL_WORLD_SIZE"]) == (str(number % 2), "2")
        # All meet where the first one says.
        assert environment["MASTER_ADDR"] == "10.0.0.1"
        assert environment["MASTER_PORT"] == job.started[0][2]["MASTER_PORT"]
        assert "TORCHELASTIC_USE_AGENT_STORE" not in environment
        assert set(TORCHRUN) <= set(environment)
        own = allocator_environment("cpu") | {"OMP_NUM_THREADS": "3"}
        assert {name: environment[name] for name in own} == own


def test_workers_that_are_placed_otherwise_than_planned_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=4, micro_batch_size=1))
    with pytest.raises(RuntimeError, match="1 ranks on node 0, where the plan has 2 on each"):
        run(emitted(path, "--gpus-per-node", "2"), tmp_path, monkeypatch, per_node=1)


def test_a_rank_that_fails_fails_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2, micro_batch_size=1))
    with pytest.raises(RuntimeError, match="rank 1 of 2 ended with 5"):
        run(emitted(path), tmp_path, monkeypatch, codes=(0, 5))


def test_what_is_started_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2, micro_batch_size=1))
    job = run(emitted(path, "--checkpoint", "saved", "--max-restarts", "3"), tmp_path, monkeypatch)
    assert job.asked["FailureConfig"] == {"max_failures": 3}
    assert "--resume" in job.started[0][0]
    with pytest.raises(InputError, match="without --checkpoint they would start from step 0"):
        emitted(path, "--max-restarts", "3")
    with pytest.raises(InputError, match="ray starts no container"):
        emitted(path, "--image", "ours:1")
    with pytest.raises(InputError, match="runs what is installed on its nodes"):
        emitted(path, "--install", "./here")


def test_no_name_breaks_out_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = '"""\nopen("broken-out", "w")\n{0} \\ $(touch broken-out) \'\'\'\n#'
    folder = tmp_path / evil.replace("/", "").replace("\0", "")
    folder.mkdir()
    path = write_plan_file(
        folder / "plan.json", Plan(data_parallel=2), spec=replace(LLAMA, name=evil.replace("\n", ""))
    )
    text = emitted(path)
    tree = ast.parse(text)
    kinds = {type(node) for node in tree.body}
    assert kinds == {ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef, ast.If}
    job = run(text, tmp_path, monkeypatch)
    assert job.started[0][0][3] == str(path)
    assert not (Path.cwd() / "broken-out").exists()
