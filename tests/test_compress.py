"""Recipes on two real ranks with real text: predicted sizes hold, and quality comes out as it comes out."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from executor.command import app
from executor.compress.job import Extras, prepare_compression
from executor.compress.results import CompressionFile, CompressionResult
from executor.compress.train_one import CompressionOrder
from executor.compress.verdict import worth
from executor.run.prepare import RunOptions
from planner.compression.recipes import CompressionChoice, recipe, risk, smaller_weights, stored_bytes
from planner.plans import Plan
from planner.prediction import PlanFile
from planner.space.weights import weights_of
from profiles import artifacts
from profiles.artifacts import dump, validate
from profiles.errors import EnvironmentFailure, InputError, PlanError
from profiles.files import write_text
from profiles.machines.fingerprint import current_device_kind
from profiles.ranks.launcher import launch
from reports.command import app as compare_app
from tests.plan_builders import LLAMA, make_plan_file
from tests.report_builders import load, run_file
from tests.warm_ranks import starting_from

RUNNER = CliRunner()
WIDE = replace(LLAMA, config={**LLAMA.config, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8})
SIZES = weights_of(WIDE.name, WIDE.config)
DATA = Plan(data_parallel=2, micro_batch_size=4)
SHARDS = Plan(data_parallel=2, micro_batch_size=4, zero_stage=3)
SPLIT = Plan(tensor_parallel=2, micro_batch_size=8)
NAMES = (
    "none", "prune-ffn-50", "prune-heads-50", "prune-layers-50", "distil-layers-50", "sparse-50", "sparse-2:4",
    "int8-weights", "int8-dynamic", "fp8-weights", "qat-int8",
)  # fmt: skip


def choice(name: str, plan: Plan = DATA, **fields: Any) -> CompressionChoice:
    own = recipe(name)
    known: dict[str, Any] = {
        "num_parameters": int(smaller_weights(SIZES, own).num_parameters),
        "stored_bytes": stored_bytes(SIZES, own),
        "step_seconds": 0.1,
        "peak_bytes": 1e7,
        "latency_seconds": None,
        "risk": risk(own),
    }
    return CompressionChoice(recipe=own, plan=plan, **{**known, **fields})


def plan_file(names: tuple[str, ...], plan: Plan = DATA) -> PlanFile:
    file = make_plan_file(plan, spec=WIDE, sequence=64)
    return replace(file, compression=tuple(choice(name, plan) for name in names))


def run(
    names: tuple[str, ...], plan: Plan, first: int, more: int, *, compiles: bool = False
) -> dict[str, CompressionResult]:
    order = CompressionOrder(
        first_steps=first, more_steps=more, seed=0, data_file="", device_kind="cpu", timeout_seconds=60,
        compiles=compiles,
    )  # fmt: skip
    payload = {"file": asdict(plan_file(names, plan)), "order": asdict(order)}
    fields = launch("executor.compress.session:run_compression", payload, 2, "cpu")
    results = [validate(one, CompressionResult, "the test") for one in fields["results"]]
    return {result.recipe.name: result for result in results}


def test_the_folder_of_exports_is_tried_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    artifacts.write(tmp_path / "plan.json", "plan", plan_file(("none",)))
    with pytest.raises(EnvironmentFailure, match=r"cannot write plan\.json/below: Not a directory"):
        prepare_compression(Path("plan.json"), Extras(export=Path("plan.json/below")), RunOptions(steps=1))


@pytest.fixture(scope="module")
def found(rank_servers: Path) -> dict[str, CompressionResult]:
    with starting_from(rank_servers):
        return run(NAMES, DATA, 90, 40)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_sizes_are_those_predicted(found: dict[str, CompressionResult]) -> None:
    for name, result in found.items():
        expected = choice(name)
        assert (result.num_parameters, result.stored_bytes) == (expected.num_parameters, expected.stored_bytes), name
    assert found["none"].num_zeros == 0
    matrices = found["none"].num_parameters - sum(64 for _ in range(2 * 4 + 1))
    assert found["sparse-50"].num_zeros == found["sparse-2:4"].num_zeros == matrices // 2


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_quality_is_measured_and_could_be_bad(found: dict[str, CompressionResult]) -> None:
    whole = found["none"]
    assert whole.loss < whole.loss_before < 5.5
    # What is taken away is missed at first, and training on makes up for some of it.
    for name in ("prune-ffn-50", "prune-heads-50", "prune-layers-50", "distil-layers-50"):
        assert found[name].loss < found[name].loss_before, name
    # Heads of so small a model are hardly missed.
    for name in ("prune-ffn-50", "prune-layers-50"):
        assert found[name].loss_before > whole.loss_before, name
    assert found["sparse-50"].loss < found["sparse-2:4"].loss_before
    # Rounding to 255 steps, or to 3 bits of mantissa, costs this model next to nothing.
    for name in ("int8-weights", "int8-dynamic", "fp8-weights"):
        assert found[name].loss == pytest.approx(whole.loss, rel=0.01)
        assert found[name].step_seconds == ()
    assert found["qat-int8"].loss == pytest.approx(whole.loss, rel=0.02)
    assert found["prune-layers-50"].latency_seconds < 0.9 * whole.latency_seconds


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_shards_train_what_replicas_do() -> None:
    names = ("none", "distil-layers-50", "distil-layers-50-hidden", "sparse-50", "qat-int8")
    sharded = run(names, SHARDS, 8, 6)
    replicas = run(names, DATA, 8, 6)
    split = run(names[:3], SPLIT, 8, 6)
    for name in names[:3]:
        assert split[name].loss == pytest.approx(replicas[name].loss, rel=1e-3), name
    for name in names:
        # Each shard keeps its own largest weights, which are not the largest of all.
        tolerance = 2e-2 if name == "sparse-50" else 1e-3
        assert sharded[name].loss == pytest.approx(replicas[name].loss, rel=tolerance), name
        assert sharded[name].stored_bytes == replicas[name].stored_bytes
    assert sharded["sparse-50"].num_zeros == replicas["sparse-50"].num_zeros


@pytest.mark.gloo
@pytest.mark.slow
def test_latencies_under_torch_compile() -> None:
    # int8 without a compiler pays for quantising what comes in, operator by operator.
    found = run(("none", "int8-dynamic"), DATA, 2, 0, compiles=True)
    for result in found.values():
        assert result.compiled_seconds is not None
        assert 0 < result.compiled_seconds < 3 * result.latency_seconds


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_the_commands_run_and_show_it(tmp_path: Path) -> None:
    plan, output, page = tmp_path / "plan.json", tmp_path / "c.json", tmp_path / "c.html"
    file = plan_file(("none", "prune-ffn-50", "int8-dynamic"))
    refused = replace(choice("prune-heads-50"), refusal="none of the 1 groups of heads can be removed")
    write_text(plan, dump("plan", replace(file, compression=(*file.compression, refused))))
    done = RUNNER.invoke(app, [str(plan), "--compress", "--steps", "3", "--more-steps", "2", "-o", str(output)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "prune-heads-50 is left out" in " ".join(done.output.split())
    content = artifacts.read(output, "compression", CompressionFile)
    assert content.load is not None
    assert content.load.seconds > 0
    assert content.environment.load_before is not None
    assert [own.recipe.name for own in content.results] == ["none", "prune-ffn-50", "int8-dynamic"]
    shown = RUNNER.invoke(compare_app, [str(output), "-o", str(page), "--json"])
    assert shown.exit_code == 0, (shown.output, shown.exception)
    text = page.read_text()
    assert "Is it worth it?" in text
    assert text.count("exact") == 6
    assert all(worth(content, own)[1].split(":")[0] in text for own in content.results[1:])
    mixed = RUNNER.invoke(compare_app, [str(output), str(plan)])
    assert isinstance(mixed.exception, InputError)


@pytest.mark.gloo
@pytest.mark.slow
def test_exports_are_timed_and_sparse_ones_masked(tmp_path: Path) -> None:
    plan, output, folder = tmp_path / "plan.json", tmp_path / "c.json", tmp_path / "out"
    artifacts.write(plan, "plan", plan_file(("none", "sparse-2:4")))
    steps = ["--compress", "--steps", "2", "--more-steps", "2", "--export", str(folder), "--runtimes", "onnxruntime"]
    done = RUNNER.invoke(app, [str(plan), *steps, "-o", str(output)])
    assert done.exit_code == 0, (done.output, done.exception)
    content = artifacts.read(output, "compression", CompressionFile)
    for own in content.results:
        assert {"PyTorch", "ONNX Runtime"} <= {one.runtime for one in own.runtimes}
    whole = next(one for one in content.results[0].runtimes if one.runtime == "ONNX Runtime")
    assert whole.loss == pytest.approx(content.results[0].loss, rel=1e-3)
    assert whole.right_fraction == pytest.approx(content.results[0].right_fraction, abs=0.01)
    assert (folder / "sparse-2-4.onnx").exists()
    assert (folder / "sparse-2-4.prune.pt").exists()
    assert any("2:4 zeros were not timed" in note for note in content.notes) or current_device_kind() == "cuda"


def test_a_plan_without_recipes_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    write_text(plan, dump("plan", plan_file(())))
    done = RUNNER.invoke(app, [str(plan), "--compress"])
    assert isinstance(done.exception, PlanError)
    assert "--compress auto" in str(done.exception)
    write_text(plan, dump("plan", plan_file(("int8-dynamic",))))
    done = RUNNER.invoke(app, [str(plan), "--compress"])
    assert isinstance(done.exception, PlanError)
    assert "the first recipe must be none" in str(done.exception)


def result(name: str, size: int, latency: float, loss: float, equal: float) -> CompressionResult:
    return CompressionResult(
        recipe=recipe(name), num_parameters=1, num_zeros=0, stored_bytes=size, loss_before=loss, loss=loss,
        equal_time_loss=equal, right_fraction=0.5, step_seconds=(), latency_seconds=latency,
        latency_spread_fraction=0.0,
    )  # fmt: skip


def test_times_of_tensorrt_taken_elsewhere_stand_in_the_page(tmp_path: Path) -> None:
    whole, own = result("none", 100, 1.0, 2.0, 2.0), result("sparse-2:4", 100, 1.0, 2.0, 2.0)
    own = replace(own, onnx_file="out/sparse-2-4.onnx")
    file = CompressionFile(
        model_name="m", workload=WIDE, plan="p", global_batch_size=1, sequence_length=1, sample_shape=(64,),
        first_steps=1, seed=0, choices=(choice("none"), choice("sparse-2:4")), results=(whole, own),
        environment=run_file([]).environment,
    )  # fmt: skip
    path, page = tmp_path / "c.json", tmp_path / "c.html"
    artifacts.write(path, "compression", file)
    before = RUNNER.invoke(compare_app, [str(path)])
    assert "--sparsity=enable --exportTimes=out/sparse-2-4.times.json" in " ".join(before.output.split())
    times = tmp_path / "sparse-2-4.times.json"
    times.write_text(str([{"computeMs": x, "latencyMs": x + 1} for x in (1, 2, 4)]).replace("'", '"'))
    done = RUNNER.invoke(compare_app, [str(path), "--trt-times", str(times), "-o", str(page), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "sparse-2:4 in TensorRT, as the file says: 2 ms" in done.output
    assert "In other runtimes" in page.read_text(encoding="utf-8")
    assert "(not run here" not in done.output
    again = RUNNER.invoke(compare_app, [str(path), "--trt-times", f"none={times}"])
    assert "none in TensorRT" in again.output
    (tmp_path / "other.json").write_text(times.read_text(encoding="utf-8"), encoding="utf-8")
    wrong = RUNNER.invoke(compare_app, [str(path), "--trt-times", str(tmp_path / "other.json")])
    assert "RECIPE=FILE (known are none, sparse-2:4)" in str(wrong.exception)


@pytest.mark.parametrize(
    ("size", "latency", "loss", "tone"),
    [
        (50, 1.0, 2.0, "good"),
        (100, 0.5, 2.0, "good"),
        (50, 0.5, 2.2, "fair"),
        (100, 1.0, 2.0, "bad"),
        (97, 0.97, 1.9, "bad"),
        # Smaller, and twice as slow.
        (25, 2.0, 2.0, "fair"),
    ],
)
def test_worth_weighs_savings_against_quality(size: int, latency: float, loss: float, tone: str) -> None:
    whole, own = result("none", 100, 1.0, 2.0, 2.0), result("sparse-50", size, latency, loss, 2.0)
    file = CompressionFile(
        model_name="m", workload=WIDE, plan="p", global_batch_size=1, sequence_length=1, sample_shape=(64,),
        first_steps=1, seed=0,
        choices=(), results=(whole, own), environment=run_file([]).environment,
    )  # fmt: skip
    found_tone, words = worth(file, own)
    assert found_tone == tone, words
    assert ("no, it saves nothing" in words) == (tone == "bad")
    # Times taken on a busy machine say nothing, sizes do.
    found_tone, words = worth(replace(file, load=load(0.97)), own)
    assert found_tone == "fair"
    assert words.startswith("sparse-50: not judged (a busy machine)")
    assert ("% smaller" in words) == (size < 95)
