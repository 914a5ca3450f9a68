"""`execute` from the outside: what it refuses, what it writes, and what it leaves behind when it is stopped."""

import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import executor.run.prepare
from executor.command import app
from executor.legality import choose
from executor.run.checkpoint import Checkpoints
from executor.run.checks import check_devices
from executor.run.measurement import RunFile
from executor.run.prepare import RunOptions, prepare
from executor.run.run_folder import KeptRun
from executor.run.show import show
from planner.plans import Plan
from planner.prediction import PlanFile
from planner.simulate.perfetto import STREAMS
from profiles import artifacts
from profiles.errors import ArtifactError, EnvironmentFailure, InputError, PlanError
from reports.reading import in_folders, read_sources
from tests.plan_builders import LLAMA, write_plan_file
from tests.report_builders import beside, demo_run_file, load, run_file

SOURCE = Path(__file__).parent.parent
DATA = Plan(data_parallel=2, micro_batch_size=2, num_microbatches=2)
STAGES = Plan(pipeline_parallel=2, schedule="1f1b", stage_bounds=(0, 3), micro_batch_size=2, num_microbatches=4)
SPLIT = Plan(tensor_parallel=2, micro_batch_size=4, num_microbatches=2)
CONTEXT = Plan(context_parallel=2, zero_stage=3, micro_batch_size=4, num_microbatches=2)


def stages(schedule: str, virtual_stages: int, **fields: Any) -> Plan:
    bounds = (0, 3) if virtual_stages == 1 else (0, 2, 4, 5)
    values = {"num_microbatches": 2, "stage_bounds": bounds, "virtual_stages": virtual_stages, **fields}
    return Plan(pipeline_parallel=2, schedule=schedule, **values)  # type: ignore[arg-type]


def execute(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "executor", *arguments], cwd=SOURCE, capture_output=True, text=True, check=False
    )


def checked(path: Path, **options: object) -> object:
    return prepare(path, RunOptions(steps=1, warmup=1, **options))  # type: ignore[arg-type]


def test_help_does_not_load_torch() -> None:
    code = "import sys\nfrom executor.command import app\napp(['--help'], standalone_mode=False)\n"
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, check=False).returncode == 0
    assert app.info is not None


def test_a_file_that_is_no_plan_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text('{"artifact": "run", "schema": 1}')
    for file, words in (("no.json", "is a run file, not a plan"), ("missing.json", "it does not exist")):
        code = "import sys\nfrom executor.command import app\nfrom profiles.errors import ArtifactError\n"
        code += f"try: app([{str(tmp_path / file)!r}], standalone_mode=False)\nexcept ArtifactError as error: "
        code += f"assert {words!r} in str(error), error\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(data_parallel=2, offload="optimizer"), "no plan of this file can be run"),
        (Plan(zero_stage=1), "plan zero_stage=1 with data_parallel=1: nothing to shard over"),
        (Plan(data_parallel=2, zero_stage=3, codec="int8"), "plan zero_stage=3 with codec=int8: FSDP reduces in bf16"),
        (Plan(data_parallel=2, shard_degree=2), "plan shard_degree=2 with zero_stage=0: HSDP is FSDP"),
        (Plan(sequence_parallel=True), "plan sequence_parallel with tensor_parallel=1"),
        (Plan(context_parallel=4), "plan context_parallel=4: .* num_kv_heads=2"),
        (stages("zbv", 1), "plan virtual_stages=1: zbv has two stages per rank"),
        (stages("1f1b", 2), "plan virtual_stages=2: 1f1b has one stage per rank"),
        (stages("dualpipev", 2), "plan num_microbatches=2: dualpipev needs at least one per stage, 4"),
        (stages("interleaved-zb", 2, num_microbatches=5), "plan num_microbatches=5: interleaved-zb goes in 2 rounds"),
        (stages("zbv", 2, data_parallel=2, zero_stage=3), "plan zero_stage=3 with schedule=zbv"),
        (stages("zbv", 2, compiled=True), "plan compiled with schedule=zbv"),
        (stages("zbv", 2, recompute="full"), "plan recompute=full with schedule=zbv"),
        (
            stages("zbv", 2, data_parallel=2, tensor_parallel=2, zero_stage=1),
            "plan zero_stage=1 with schedule=zbv and tensor_parallel=2",
        ),
        (
            stages("interleaved-1f1b", 2, recompute="full", recompute_layers=(1, 1, 2, 0)),
            r"plan recompute_layers=\(1, 1, 2, 0\): stage 2 has 1 layers that can be recomputed",
        ),
        (Plan(data_parallel=2, precision="fp4"), "plan precision=fp4: the executor has fp32, tf32, bf16, fp16, fp8"),
        (Plan(tensor_parallel=2, precision="fp8"), "plan precision=fp8 with tensor_parallel=2"),
        (stages("zbv", 2, precision="fp8"), "plan precision=fp8 with schedule=zbv"),
        (Plan(tensor_parallel=2, codec="bf16"), "plan codec=bf16 with data_parallel=1"),
        (Plan(pipeline_parallel=2, schedule="1f1b", stage_bounds=(0, 3)), "plan num_microbatches=1: 1f1b needs"),
        (Plan(pipeline_parallel=2, schedule="gpipe", stage_bounds=(0, 9)), "plan stage_bounds"),
        (Plan(pipeline_parallel=2, schedule="none", stage_bounds=(0, 3)), "plan schedule=none"),
        (Plan(tensor_parallel=4), "plan tensor_parallel=4: num_kv_heads=2"),
        (Plan(data_parallel=2, axis_order=("data", "data", "tensor")), "plan axis_order"),
    ],
)
def test_refuses_by_name_before_anything_starts(tmp_path: Path, plan: Plan, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        checked(write_plan_file(tmp_path / "plan.json", plan), oversubscribe=True)


def test_refuses_a_file_that_does_not_fit_its_plan(tmp_path: Path) -> None:
    path = write_plan_file(tmp_path / "plan.json", DATA, global_batch_size=9)
    with pytest.raises(PlanError, match="takes 8 samples per step, its file 9"):
        checked(path)
    path = write_plan_file(tmp_path / "plan.json", DATA, num_devices=3)
    with pytest.raises(PlanError, match="is for 2 devices, its file for 3"):
        checked(path)
    path = write_plan_file(tmp_path / "plan.json", DATA, sequence=500)
    with pytest.raises(InputError, match="500 tokens are longer than the 128"):
        checked(path)
    (tmp_path / "plan.json").write_text(path.read_text()[:-20])
    with pytest.raises(ArtifactError, match="is not JSON"):
        checked(path)


def test_refuses_what_the_text_cannot_be(tmp_path: Path) -> None:
    path = write_plan_file(tmp_path / "plan.json", DATA)
    with pytest.raises(InputError, match="cannot read the data"):
        checked(path, data=tmp_path / "missing.txt")
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(InputError, match="has 5 bytes"):
        checked(path, data=tmp_path / "short.txt")
    small = LLAMA.__class__(kind="transformers", name="small", config={**LLAMA.config, "vocab_size": 100})
    with pytest.raises(InputError, match="vocabulary of 100"):
        checked(write_plan_file(tmp_path / "plan.json", DATA, spec=small))


@pytest.mark.parametrize("option", ["runs", "trace", "checkpoints"])
def test_folders_are_tried_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_plan_file(tmp_path / "plan.json", DATA)
    for folder, words in (("plan.json", "File exists"), ("plan.json/below", "Not a directory")):
        place = Checkpoints(folder=folder, every=1) if option == "checkpoints" else Path(folder)
        with pytest.raises(EnvironmentFailure, match=f"cannot write {folder}: {words}; nothing was started"):
            checked(path, **{option: place})


def test_more_ranks_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentFailure, match="--oversubscribe"):
        check_devices(10_000, "cpu", oversubscribe=False)
    with pytest.raises(EnvironmentFailure, match=r"^the plan was made for h100-sxm x 8; try it here with --rehearse"):
        check_devices(10_000, "cpu", oversubscribe=False, made_for="h100-sxm x 8")
    assert check_devices(10_000, "cpu", oversubscribe=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(EnvironmentFailure, match="2 ranks need 2 GPUs, this machine has 1"):
        check_devices(2, "cuda", oversubscribe=True)


def test_plans_that_the_table_hides_are_told_when_they_are_run(tmp_path: Path) -> None:
    path = write_plan_file(tmp_path / "plan.json", DATA, STAGES)
    file = artifacts.read(path, "plan", PlanFile)
    first, second, *others = sorted(file.candidates, key=lambda candidate: candidate.rank)
    hidden = replace(file, candidates=(first, replace(second, folded_into=first.rank), *others))
    assert choose(file, 2, with_baseline=False)[1] == choose(hidden, 1, with_baseline=False)[1] == []
    (note,) = choose(hidden, 2, with_baseline=False)[1]
    assert second.plan.id in note
    assert note.endswith(f"counts it as similar to {first.rank}")


def test_planned_only_plans_are_left_out_with_a_note(tmp_path: Path) -> None:
    path = write_plan_file(
        tmp_path / "plan.json", Plan(data_parallel=2, micro_batch_size=4, offload="optimizer"), DATA, STAGES
    )
    job = checked(path, top=1)
    assert job.order.chosen == (1,)  # type: ignore[attr-defined]
    assert any("simulate only" in note for note in job.notes)  # type: ignore[attr-defined]


def check_kept(folder: Path, run: Path) -> None:
    """The folder has the run and a log of its blocks of steps, and `compare` reads the folder."""
    (own,), (log,) = folder.glob("*.run.json"), folder.glob("*.log.jsonl")
    assert own.read_text() == run.read_text()
    assert own.name.removesuffix(".run.json") == log.name.removesuffix(".log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    # Four plans in blocks of five steps and one.
    assert [line["plan"] for line in lines] == [plan.id for plan in (STAGES, SPLIT, CONTEXT, DATA)] * 2
    for line in lines:
        predicted = {"predicted_seconds", "predicted_memory_gib"}
        assert set(line) == {"plan", "step", "loss", "memory_gib", "seconds", "tps", "tflops", "mfu", *predicted}
        assert line["tps"] == pytest.approx(8 * 32 / line["seconds"])
    (source,) = read_sources(in_folders([folder]))
    assert source.file == artifacts.read(run, "run", RunFile)


def test_runs_of_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    first, second = (KeptRun(tmp_path / "runs", "2026-01-02T03:04:05+00:00", "a model", 2) for _ in range(2))
    first.append({"step": 1})
    assert first.write("one").name == "2026-01-02T03-04-05-a-model-2ranks.run.json"
    assert second.write("two").name == "2026-01-02T03-04-05-a-model-2ranks-2.run.json"
    assert first.path.read_text() == "one"
    with pytest.raises(InputError, match="no runs"):
        in_folders([tmp_path])


def test_a_busy_machine_is_told_before_the_run_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = replace(load(1.9), waited_fraction=None)
    monkeypatch.setattr(executor.run.prepare, "look_before", lambda ranks: (before, ["busy before the start"]))
    job = checked(write_plan_file(tmp_path / "plan.json", DATA))
    assert job.notes[-1] == "busy before the start"  # type: ignore[attr-defined]
    assert job.load_before == before  # type: ignore[attr-defined]


def test_plans_that_ran_on_a_busy_machine_are_told() -> None:
    out = Console(file=io.StringIO(), width=160)
    first, *others = demo_run_file().runs
    show(run_file([beside(first, 0.97), *others]), 2, out, None)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert first.plan.id in text
    # An error that is not judged stands in brackets, as in `compare`.
    assert len(re.findall(r"\([+-][\d.]+ %\)", text)) == 1
    assert "note: 1 of 7 plans ran on a busy machine (at worst 0.97 of 2 cores taken by other processes)" in text


@pytest.mark.gloo
@pytest.mark.alone
def test_runs_measures_and_writes(tmp_path: Path) -> None:
    plan, run = tmp_path / "plan.json", tmp_path / "run.json"
    write_plan_file(plan, STAGES, SPLIT, CONTEXT, DATA, baseline=3)
    kept = tmp_path / "runs"
    done = execute(
        str(plan), "--steps", "6", "--top", "3", "--with-baseline", "--json", "-v", "-o", str(run), "--runs", str(kept),
        "--trace", str(tmp_path / "traces"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_kept(kept, run)
    check_board(kept)
    check_traces(tmp_path / "traces")
    assert json.loads(done.stdout) == json.loads(run.read_text())
    assert "tps:" in done.stderr
    result = artifacts.read(run, "run", RunFile)
    assert result.environment.load_before is not None
    assert [item.plan for item in result.runs] == [STAGES, SPLIT, CONTEXT, DATA]
    assert [item.is_baseline for item in result.runs] == [False, False, False, True]
    for item in result.runs:
        measured = item.measurement
        assert measured.loss_check.status == "passed", measured.loss_check
        assert len(measured.step_seconds) == 6
        assert len(measured.losses) == 6 + measured.num_warmup_steps
        assert len(measured.peak_bytes) == 2
        # The watch looks on during the timed steps, and between them within a block.
        assert measured.load is not None
        # Each step counts on the rank that was slowest in it, and both ranks' steps lie in the time that was watched.
        assert sum(measured.step_seconds) <= 2 * measured.load.seconds
        assert (measured.load.num_ranks, measured.load.other_cores is None) == (2, False)
        known = [value for value in measured.seconds.values() if value is not None]
        # Parts are medians, each of its own step: their sum is near the median step, not equal to it.
        assert 0 < sum(known) < 1.5 * max(measured.step_seconds)
        assert {span.action for span in measured.spans} >= {"F", "B", "optimizer"}
        assert all(0 <= span.start_seconds <= span.stop_seconds for span in measured.spans)
    stages, split, context, data = (item.measurement for item in result.runs)
    assert stages.seconds["bubble"]
    # FSDP shards over the context axis too.
    sent = [(stages, {"pipeline"}), (split, {"tensor"}), (context, {"context", "data"}), (data, {"data"})]
    for own, axes in sent:
        seen = {axis for axis in ("tensor", "context", "expert", "data", "pipeline") if own.seconds[f"{axis}_comm"]}
        assert seen == axes
        assert sum(own.seconds[f"{axis}_comm"] for axis in seen) < max(own.step_seconds)
    assert stages.losses == pytest.approx(split.losses, rel=1e-4)
    assert {span.stage for span in stages.spans} == {0, 1}


def check_traces(folder: Path) -> None:
    """Every plan and rank has a trace, on the planner's tracks, whose actions fill the step that torch timed."""
    files = sorted(folder.iterdir())
    assert len(files) == 4 * 2
    for path in files:
        events = json.loads(path.read_text())["traceEvents"]
        rank = int(path.name.split(".rank")[1].split(".")[0])
        tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == rank}
        assert set(tracks.values()) <= set(STREAMS)
        ours = [event for event in events if event["ph"] == "X" and event["pid"] == rank]
        step = next(event for event in events if event["name"] == "trainwright step" and event["ph"] == "X")
        assert {event["name"] for event in ours} >= {"F", "B", "optimizer"}
        assert min(event["ts"] for event in ours) >= step["ts"] - 1
        assert max(event["ts"] + event["dur"] for event in ours) <= step["ts"] + step["dur"] + 1
        # torch's own matrix products lie within our forward and backward actions.
        passes = [event for event in ours if event["name"] in ("F", "B")]
        products = [event for event in events if event["name"] in ("aten::mm", "aten::addmm") and event["ph"] == "X"]
        inside = [p for p in products if any(a["ts"] <= p["ts"] <= a["ts"] + a["dur"] for a in passes)]
        assert len(products) > 20
        assert len(inside) == len(products)
    split = next(json.loads(path.read_text()) for path in files if path.name.startswith("tp2"))
    assert any(event.get("cat") == "tensor" and event["name"] == "all_reduce" for event in split["traceEvents"])
    context = next(json.loads(path.read_text()) for path in files if path.name.startswith("cp2"))
    exchanges = [event for event in context["traceEvents"] if event.get("cat") == "context"]
    # Of queries, keys, values and what attention gives, there and back, in every block and micro-batch.
    assert len(exchanges) == 2 * 4 * LLAMA.config["num_hidden_layers"] * CONTEXT.num_microbatches


def check_board(kept: Path) -> None:
    """TensorBoard reads the losses that the log has."""
    (board,) = kept.glob("*.board")
    (log,) = kept.glob("*.log.jsonl")
    reader = EventAccumulator(str(board)).Reload()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for plan in {line["plan"] for line in lines}:
        logged = [(line["step"], line["tps"]) for line in lines if line["plan"] == plan]
        shown = [(event.step, event.value) for event in reader.Scalars(f"{plan}/tps")]
        assert shown == [(step, pytest.approx(value)) for step, value in logged]
        predicted = [event.value for event in reader.Scalars(f"{plan}/predicted_seconds")]
        assert predicted == [pytest.approx(line["predicted_seconds"]) for line in lines if line["plan"] == plan]
    (layout,) = reader.Tensors("custom_scalars__config__")
    charts = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])
    assert {each.title for each in charts.category} == {line["plan"] for line in lines}


@pytest.mark.gloo
@pytest.mark.parametrize("what", ["interrupted", pytest.param("rank killed", marks=pytest.mark.slow)])
def test_stopped_in_the_middle(tmp_path: Path, what: str) -> None:
    plan, run = tmp_path / "plan.json", tmp_path / "run.json"
    write_plan_file(plan, DATA)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "executor",
            str(plan),
            "--steps",
            "100000",
            "-v",
            "-o",
            str(run),
            "--runs",
            str(tmp_path),
        ],
        cwd=SOURCE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    while "tps:" not in process.stdout.readline():
        assert process.poll() is None
    ranks = psutil.Process(process.pid).children(recursive=True)
    if what == "interrupted":
        process.send_signal(signal.SIGINT)
        code, sentence = 130, "error: interrupted: nothing was written"
    else:
        next(rank for rank in ranks if "profiles.ranks.start" in " ".join(rank.cmdline())).kill()
        code, sentence = 5, "was killed by SIGKILL"
    _, errors = process.communicate(timeout=90)
    assert process.returncode == code
    assert sentence in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive
    assert not run.exists()
    assert not list(tmp_path.glob(".run.json*"))
    # What had been said of it is kept, and no run that did not end.
    assert [path.read_text().count("\n") > 0 for path in tmp_path.glob("*.log.jsonl")] == [True]
    assert not list(tmp_path.glob("*.run.json"))


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_failed_check_writes_the_run_and_exits_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from executor import command
    from executor.run.reference import Reference, check_losses
    from profiles.errors import ToleranceError
    from profiles.ranks import launcher

    plan, run = tmp_path / "plan.json", tmp_path / "run.json"
    write_plan_file(plan, DATA)
    real = launcher.launch

    def spoilt(*arguments: object, **options: object) -> object:
        fields = real(*arguments, **options)  # type: ignore[arg-type]
        first = fields[0]["losses"][:3]
        check = check_losses(DATA, [loss * 1.01 for loss in first], first, Reference(losses=first, norms=first))
        fields[0]["loss_check"] |= {"status": check.status, "reason": check.reason}
        return fields

    monkeypatch.setattr(launcher, "launch", spoilt)
    with pytest.raises(ToleranceError, match="differs from one device") as caught:
        command.app([str(plan), "--steps", "1", "-o", str(run)], standalone_mode=False)
    assert caught.value.exit_code == 4
    assert artifacts.read(run, "run", RunFile).runs[0].measurement.loss_check.status == "failed"
