"""Engines: what each refuses by name, that a file is run by what it is for, what a run file says of it."""

import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from executor.command import app
from executor.engines import ENGINES, Training, engine, engines_of
from executor.legality import choose
from executor.mesh import Coordinates, Meshes
from executor.observe.events import BACKWARD, FORWARD, OPTIMIZER, StepTrace
from executor.observe.recorder import Recorder
from executor.observe.time_parts import without_messages
from executor.run.batches import default_text, load_text
from executor.run.beside import ratios
from executor.run.checks import facts_of_workload
from executor.run.measurement import RunFile
from executor.run.reference import Reference, alike
from executor.run.runner import Runner
from executor.run.turns import MOST_TOGETHER, groups_in_turns
from planner.plans import Plan
from profiles.errors import EnvironmentFailure, InputError, PlanError, UnknownNameError
from profiles.models.adapters import adapters
from profiles.ranks.rank import join_group
from profiles.workloads.loading import load_workload
from reports.comparison import Source, rows_of
from reports.learning import steps_of
from tests.plan_builders import LLAMA, make_plan_file, write_plan_file
from tests.report_builders import run_file, simple_run
from tests.test_emit import free_port

RUNNER = CliRunner()
DATA = Plan(data_parallel=2, micro_batch_size=4)
PIPELINE = Plan(pipeline_parallel=2, micro_batch_size=4, num_microbatches=2, schedule="1f1b", stage_bounds=(0, 3))
FACTS = facts_of_workload(load_workload(LLAMA))


@pytest.mark.parametrize(
    ("name", "plan", "words"),
    [
        (
            "deepspeed",
            replace(DATA, data_parallel=1, tensor_parallel=2),
            "tensor_parallel=2: DeepSpeed cannot split",
        ),
        ("deepspeed", replace(DATA, data_parallel=1, context_parallel=2), "context_parallel=2"),
        ("deepspeed", replace(DATA, data_parallel=4, zero_stage=3, shard_degree=2), "use shard_degree=0"),
        ("deepspeed", replace(DATA, codec="bf16"), "codec=bf16: DeepSpeed sends gradients uncompressed, use none"),
        ("deepspeed", replace(DATA, precision="fp8"), "use bf16"),
        ("deepspeed", replace(DATA, compiled=True), "compiled: not tried with DeepSpeed"),
        ("deepspeed", replace(DATA, offload="optimizer"), "use zero_stage=1"),
        ("deepspeed", replace(DATA, offload="activations"), "use offload=optimizer or none"),
        ("deepspeed", replace(PIPELINE, data_parallel=2, zero_stage=2), "use zero_stage=1"),
        ("deepspeed", replace(PIPELINE, schedule="gpipe"), "DeepSpeed's pipeline only has 1f1b"),
        (
            "deepspeed",
            replace(PIPELINE, data_parallel=2, axis_order=("pipeline", "data", "tensor", "context")),
            "name the pipeline last",
        ),
        ("deepspeed", replace(DATA, replica_microbatches=(1, 2), num_microbatches=2), "leave it out"),
        ("deepspeed", replace(DATA, precision="fp16"), "losses are not scaled for DeepSpeed, use bf16"),
        ("horovod", replace(DATA, precision="fp16"), "losses are not scaled for Horovod, use bf16"),
        ("horovod", PIPELINE, "Horovod is data parallel only"),
        ("horovod", replace(DATA, zero_stage=1), "use zero_stage=0"),
        ("horovod", replace(DATA, codec="powersgd-2"), "Horovod only compresses to fp16"),
        ("horovod", replace(DATA, offload="optimizer"), "Horovod offloads nothing"),
    ],
)
def test_what_an_engine_does_not_do_is_refused_by_name(name: str, plan: Plan, words: str) -> None:
    assert words in ENGINES[name].refusal(plan, FACTS, 32)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        *(("deepspeed", replace(DATA, zero_stage=stage)) for stage in range(4)),
        ("deepspeed", replace(DATA, zero_stage=2, offload="optimizer")),
        ("deepspeed", PIPELINE),
        ("deepspeed", replace(PIPELINE, data_parallel=2, zero_stage=1)),
        ("deepspeed", replace(DATA, zero_stage=3, recompute="full", precision="bf16")),
        ("horovod", replace(DATA, codec="fp16")),
    ],
)
def test_what_it_does_is_not(name: str, plan: Plan) -> None:
    assert ENGINES[name].refusal(plan, FACTS, 32) == ""


def test_adapters_and_what_the_layers_do_not_allow_are_refused() -> None:
    tied = facts_of_workload(load_workload(replace(LLAMA, config={**LLAMA.config, "tie_word_embeddings": True})))
    assert "cannot be cut into stages (tied weights" in ENGINES["deepspeed"].refusal(PIPELINE, tied, 32)
    assert ENGINES["deepspeed"].refusal(replace(DATA, zero_stage=3), tied, 32) == ""
    adapted = facts_of_workload(load_workload(replace(LLAMA, adapters=adapters(4, ("q",)))))
    assert "frozen weights were not tried with DeepSpeed" in ENGINES["deepspeed"].refusal(DATA, adapted, 32)


def test_a_file_is_run_by_the_engine_it_is_for() -> None:
    file = make_plan_file(DATA, stack="deepspeed")
    with pytest.raises(PlanError, match=r"run them with --engine deepspeed, write one down .*, or plan again"):
        choose(file, 1, with_baseline=False)
    with pytest.raises(PlanError, match="run them with --engine deepspeed"):
        choose(file, 1, with_baseline=False, engines=("horovod",))
    assert choose(file, 1, with_baseline=False, engines=("deepspeed",))[0] == (0,)
    with pytest.raises(PlanError, match="megatron-core: write one down"):
        choose(replace(file, stack="megatron-core"), 1, with_baseline=False, engines=("deepspeed",))


def test_an_engine_that_is_not_here_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_plan_file(tmp_path / "plan.json", DATA)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("deepspeed", "horovod"):
        with pytest.raises(EnvironmentFailure, match=f"--engine {name}: .* is not importable here: .+"):
            engines_of([name])
    done = RUNNER.invoke(app, [str(path), "--engine", "deepspeed", "--steps", "1"])
    assert isinstance(done.exception, EnvironmentFailure)


def test_an_engine_that_does_not_import_is_said_in_a_sentence() -> None:
    broken = replace(ENGINES["deepspeed"], module="tests.no_such_module")
    with pytest.raises(EnvironmentFailure, match="DeepSpeed does not import: ModuleNotFoundError"):
        broken.maker()


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'deepspeed'"):
        engine("deepsped")
    path = write_plan_file(tmp_path / "plan.json", DATA)
    done = RUNNER.invoke(app, [str(path), "--engine", "deepspeed", "--checkpoint", str(tmp_path)])
    assert isinstance(done.exception, InputError)
    assert "--checkpoint cannot be combined with --engine" in str(done.exception)


def test_a_job_file_names_the_engine(tmp_path: Path) -> None:
    path = write_plan_file(tmp_path / "plan.json", replace(DATA, zero_stage=2), stack="deepspeed")
    done = RUNNER.invoke(app, [str(path), "--emit", "slurm", "--engine", "deepspeed"])
    assert done.exit_code == 0, done.exception
    assert "--engine deepspeed" in done.stdout
    refused = write_plan_file(tmp_path / "plan.json", PIPELINE)
    done = RUNNER.invoke(app, [str(refused), "--emit", "slurm", "--engine", "horovod"])
    assert isinstance(done.exception, PlanError)


def both_ran() -> RunFile:
    """A plan by two engines, the other one 1.5 and then 2 times as slow."""
    ours = simple_run(1.0, [1.0] * 10, compute=0.8)
    theirs = replace(simple_run(1.0, [1.5] * 5 + [2.0] * 5), engine="deepspeed", engine_version="0.19.8")
    return run_file([theirs, ours])


def test_engines_are_told_beside_this_program() -> None:
    (found,) = ratios(both_ran().runs)
    assert (found.median, found.least, found.most, found.num_turns) == (statistics.median([1.5, 2.0]), 1.5, 2.0, 2)
    assert "deepspeed 0.19.8 takes 1.75 times" in str(found)


def test_what_another_engine_ran_is_shown_with_its_version_and_teaches_nothing() -> None:
    source = Source(name="a", file=both_ran())
    theirs, ours = rows_of(source)
    assert theirs.plan_id == f"{ours.plan_id} by deepspeed 0.19.8"
    assert (theirs.is_judged, ours.is_judged) == (False, True)
    assert theirs.why_not_judged == "run by deepspeed, priced for trainwright"
    assert (theirs.to_json()["engine"], theirs.to_json()["engine_version"]) == ("deepspeed", "0.19.8")
    assert list(steps_of([source], {}).measured) == [1.0]
    priced = Source(name="a", file=replace(both_ran(), stack="deepspeed"))
    assert [row.is_judged for row in rows_of(priced)] == [True, False]
    assert not len(steps_of([priced], {}).measured)


def test_references_are_cut_to_what_a_run_has() -> None:
    reference = Reference(losses=(3.0, 2.0, 1.0), norms=(5.0, 4.0, 3.0))
    shorter, losses = alike(reference, (3.0, 2.5), (5.0,))
    assert (shorter.losses, shorter.norms, losses) == ((3.0, 2.0), (5.0,), (3.0, 2.5))
    shorter, losses = alike(reference, (3.0, 2.0, 1.0, 0.0), (5.0, 4.0, 3.0))
    assert (len(shorter.losses), losses) == (3, (3.0, 2.0, 1.0))


def test_a_run_of_this_program_has_no_engine_in_its_name() -> None:
    run = simple_run(1.0, [1.0])
    assert run.is_own
    assert run.engine_words == ""


def test_engines_of_one_plan_take_turns_however_many_plans_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor.run.turns.dist.broadcast_object_list", lambda values: None)
    file = make_plan_file(*(replace(DATA, zero_stage=stage) for stage in range(4)), PIPELINE, DATA)
    runs = [(one, ENGINES[name]) for one in file.candidates for name in ("deepspeed", "trainwright")]
    for kind in ("cpu", "cuda"):
        groups = groups_in_turns(runs, kind)
        assert [run for group in groups for run in group] == runs
        assert len(groups) > 1
        for group in groups:
            assert len(group) <= (MOST_TOGETHER if kind == "cpu" else 2)
            assert len(group) == 2 * len({one.rank for one, _ in group})


class Counting:
    """The least that a run asks of a trainer: steps on a batch that give a loss, and nothing else."""

    made: ClassVar[list["Counting"]] = []

    def __init__(self, training: Training) -> None:
        self.plan, self.place, self.num_steps = training.plan, Coordinates(), 0
        self.measures_norm, self.gradient_norm, self.held_tensors = False, 0.0, []
        self.measured, self.recorder = [], Recorder(device=training.rank.device)
        self.made.append(self)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, StepTrace]:
        self.recorder.begin()
        self.measured.append(self.measures_norm)
        self.gradient_norm = float(self.measures_norm)
        self.num_steps += 1
        start = self.recorder.now()
        loss = inputs.float().mean()
        for name in (FORWARD, BACKWARD, OPTIMIZER):
            self.recorder.note(name, -1 if name == OPTIMIZER else 0, start)
        return loss, self.recorder.finish()


@pytest.mark.gloo
def test_a_run_asks_no_more_of_an_engine_than_the_seam_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that has nothing but the seam's members is prepared, run and accounted for; norms of the first step."""
    other = replace(ENGINES["deepspeed"], name="counting", trainer="tests.test_engines:Counting", module="")
    workload = load_workload(LLAMA)
    samples = load_text(default_text(), 16, 0)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, value)
    # A rank stays on its core: what comes after it here should not.
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        with join_group("cpu") as rank:
            runner = Runner(Plan(micro_batch_size=2), workload, rank, samples, Meshes("cpu"), engine=other)
            runner.prepare(3)
            runner.run_block(2)
            found = runner.account()
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
    assert found is not None
    (made,) = Counting.made
    wanted = [float(samples.batch(step, 2)[0].float().mean()) for step in range(5)]
    assert list(found.losses) == pytest.approx(wanted)
    assert made.measured == [True, False, False, False, False]
    assert len(found.step_seconds) == 2
    assert without_messages(found.seconds)["compute"] is None
    assert found.seconds["compute"] is not None
