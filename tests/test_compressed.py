"""Prices of compressed models on a machine of round numbers, and the command that asks for them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner.command import app
from planner.compression.forward import forward_seconds, job_of, learned_for, one_sample
from planner.compression.prices import compression_choices
from planner.compression.recipes import CompressionChoice, recipes, smaller_weights
from planner.compression.teacher import teacher_bytes, teacher_seconds
from planner.pages.content import content_of_file
from planner.pages.page import render
from planner.plans import Plan
from planner.prediction import PlanFile
from planner.space.answers import answer
from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.measured_setting import measured_setting
from planner.space.question import Setting, setting
from planner.space.replay_best import in_order
from planner.space.weights import weights_of
from profiles import artifacts
from profiles.errors import InputError
from profiles.library import load_model, load_sizes
from profiles.machines.devices import find_device
from profiles.machines.profile import LayerTiming
from profiles.tracing.trace import trace
from profiles.units import format_bytes, format_seconds
from profiles.workloads.loading import load_workload
from tests.machine_builders import curve, machine
from tests.plan_builders import LLAMA, make_plan_file
from tests.test_reports_html import Page

RUNNER = CliRunner()
FLOPS, SEQUENCE, DEVICES, BATCH = 1e11, 128, 2, 8
NAMES = "prune-ffn-50,prune-heads-50,prune-layers-50,distil-layers-50,sparse-50,int8-dynamic,qat-int8"


def measured(precision: str = "fp32", codec: str = "none", **changes: object) -> Setting:
    here, model = machine(flops=FLOPS, **changes), load_model("llama-26m")  # type: ignore[arg-type]
    return measured_setting(here, model, DEVICES, BATCH, SEQUENCE, precision, codec=codec)


def shipped(num_devices: int = DEVICES) -> Setting:
    return setting(load_sizes("llama-26m"), find_device("h100-sxm"), num_devices, BATCH, SEQUENCE)


def by_name(at: Setting, names: str, targets: dict[str, float] | None = None) -> dict[str, CompressionChoice]:
    return {choice.recipe.name: choice for choice in compression_choices(at, recipes(names), targets or {})}


def priced(names: str, targets: dict[str, float] | None = None, **changes: object) -> dict[str, CompressionChoice]:
    return by_name(measured(**changes), names, targets)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> dict[str, CompressionChoice]:
    return priced(NAMES, {"size": 0.7})


def test_smaller_models_cost_less_and_a_teacher_costs_its_answers(found: dict[str, CompressionChoice]) -> None:
    whole = found["none"]
    for part in ("ffn", "heads", "layers"):
        own = found[f"prune-{part}-50"]
        assert own.step_seconds < whole.step_seconds
        assert own.latency_seconds < whole.latency_seconds  # type: ignore[operator]
        assert own.peak_bytes < whole.peak_bytes
    student, pruned = found["distil-layers-50"], found["prune-layers-50"]
    weights = weights_of("m", load_model("llama-26m").workload.config).linear_weights
    # Two FLOPs a weight and token on the rank's half of the batch; attention and the rest come on top.
    answers = 2 * weights * SEQUENCE * BATCH / 2 / FLOPS
    assert answers < student.step_seconds - pruned.step_seconds < 1.5 * answers
    assert student.peak_bytes - pruned.peak_bytes == 4 * whole.num_parameters
    assert student.latency_seconds == pruned.latency_seconds
    # Nothing is promised of zeros but that they are there.
    assert found["sparse-50"].latency_seconds == whole.latency_seconds
    assert found["sparse-50"].stored_bytes == whole.stored_bytes
    assert "dense kernels gain nothing" in found["sparse-50"].note
    assert found["qat-int8"].step_seconds > whole.step_seconds


def test_targets_are_held(found: dict[str, CompressionChoice]) -> None:
    for choice in found.values():
        assert choice.meets_targets == (choice.stored_bytes <= 0.7 * found["none"].stored_bytes)
    assert {choice.meets_targets for choice in found.values()} == {True, False}


def test_latency_in_int8_needs_a_measurement(found: dict[str, CompressionChoice]) -> None:
    assert found["int8-dynamic"].latency_seconds is None
    kernels = machine(flops=FLOPS).kernels
    linears = (
        curve("linear", "fp32", flops_per_second=FLOPS),
        curve("linear", "int8-dynamic", "int8", flops_per_second=4 * FLOPS),
    )
    own = priced("int8-dynamic", kernels=(*kernels, *linears))
    weights = weights_of("m", load_model("llama-26m").workload.config).linear_weights
    saved = 2 * weights * SEQUENCE / FLOPS * (1 - 1 / 4)
    before, after = own["none"].latency_seconds, own["int8-dynamic"].latency_seconds
    assert before is not None
    assert after == pytest.approx(before - saved, rel=1e-6)


def test_latency_is_of_the_model_as_it_is_stored() -> None:
    """Models are kept and judged in fp32, whatever they are trained in."""
    own = [compression_choices(measured(precision), recipes("prune-layers-50"), {}) for precision in ("fp32", "bf16")]
    assert [c.latency_seconds for c in own[0]] == pytest.approx([c.latency_seconds for c in own[1]])


def test_two_of_four_are_zero_where_four_divides_the_rows() -> None:
    own = priced("sparse-2:4")
    assert not own["sparse-2:4"].refusal
    assert own["sparse-2:4"].latency_seconds == own["none"].latency_seconds
    assert "GPUs" in own["sparse-2:4"].note


def test_rows_that_four_does_not_divide_are_refused() -> None:
    odd = trace(load_workload(replace(LLAMA, config={**LLAMA.config, "intermediate_size": 130})), ("fp32",))
    at = measured_setting(machine(), odd, DEVICES, BATCH, 64, "fp32")
    assert "not a multiple of four" in compression_choices(at, recipes("sparse-2:4"), {})[1].refusal


def test_parameters_are_those_of_the_smaller_weights(found: dict[str, CompressionChoice]) -> None:
    sizes = weights_of("m", load_model("llama-26m").workload.config)
    for choice in found.values():
        assert choice.num_parameters == smaller_weights(sizes, choice.recipe).num_parameters


def test_what_cannot_be_had_keeps_its_reason() -> None:
    at = measured_setting(machine(), load_model("gpt2-small"), DEVICES, BATCH, SEQUENCE, "fp32")
    heads = compression_choices(at, recipes("prune-heads-50"), {})[1]
    assert "as wide as its hidden states" in heads.refusal
    assert not heads.on_front


@pytest.mark.parametrize("at", [measured(), measured(codec="powersgd-1"), shipped(), shipped(8)])
def test_the_model_as_it_is_has_the_price_of_the_table(at: Setting) -> None:
    sent = measured() if at.source else at
    table = answer(in_order(explore(sent, Options(offload=("none",)))), 20, simulate=False, notes=())
    own = by_name(at, "sparse-50")["none"]
    same = [row.prediction for row in table.file.candidates if row.plan == own.plan]
    assert [prediction.step_seconds for prediction in same] == [own.step_seconds]
    assert [prediction.peak_bytes for prediction in same] == [own.peak_bytes]


def test_a_forward_pass_is_its_products_on_the_rank() -> None:
    at = measured()
    weights = weights_of("m", at.model.config).linear_weights
    alone = forward_seconds(one_sample(at), learned_for(at))
    assert 2 * weights * SEQUENCE / FLOPS < alone < 1.5 * 2 * weights * SEQUENCE / FLOPS
    split = plan_of(tensor_parallel=2, micro_batch_size=1, num_microbatches=BATCH)
    apart = forward_seconds(job_of(at, split), learned_for(at))
    sums = 2 * 8 * (1e-4 + 4 * SEQUENCE * at.model.transformer.hidden_size[0] / 1e9)
    # Products are halved, but for the vocabulary's, and each block sums twice; every collective is as long as its link.
    assert alone / 2 < apart - sums < alone


def plan_of(**changes: object) -> Plan:
    values = {"micro_batch_size": 4, "num_microbatches": 1, "stage_bounds": (0,), "precision": "fp32", **changes}
    return Plan(**values)  # type: ignore[arg-type]


def test_a_sharded_teacher_is_gathered_for_every_micro_batch() -> None:
    at = measured()
    whole = plan_of(data_parallel=2, micro_batch_size=2, num_microbatches=2)
    sharded = replace(whole, zero_stage=3)
    parameters = weights_of("m", at.model.config).num_parameters
    of_one = 1e-4 + 4 * parameters / 1e9
    assert teacher_seconds(at, sharded) - teacher_seconds(at, whole) == pytest.approx(2 * of_one)
    model = at.model.transformer
    assert teacher_bytes(job_of(at, whole)) == 4 * parameters
    assert teacher_bytes(job_of(at, sharded)) == 4 * parameters / 2 + 4 * model.dense_layer_parameters[0]


def test_layers_timed_without_a_loss_are_the_latency() -> None:
    model = load_model("llama-26m")
    timings = tuple(
        LayerTiming(
            workload=model.workload.digest, layer=name, precision="fp32", micro_batch_size=1, sequence_length=SEQUENCE,
            tensor_parallel=1, forward_seconds=2 * seconds, backward_seconds=4 * seconds, spread_fraction=0.0,
            inference_seconds=seconds,
        )
        for name, seconds in (("embedding", 1e-3), ("block", 2e-3), ("head", 4e-3))
    )  # fmt: skip
    own, plain = (priced("prune-layers-50", layer_timings=timed) for timed in (timings, ()))
    assert own["none"].latency_seconds == pytest.approx(1e-3 + 8 * 2e-3 + 4e-3)
    kept = [both["prune-layers-50"].latency_seconds / both["none"].latency_seconds for both in (own, plain)]  # type: ignore[operator]
    assert kept[0] == pytest.approx(kept[1])


def test_a_data_sheet_knows_no_latency_in_8_bits_and_says_so() -> None:
    found = by_name(shipped(), "auto")
    assert found["int8-dynamic"].latency_seconds is None
    assert "no data sheet" in found["int8-dynamic"].note
    assert "memory only; no data sheet gives its latency" in found["int8-weights"].note
    assert "not profiled for linears in int8-dynamic" in priced("int8-dynamic")["int8-dynamic"].note
    whole, student, pruned = (found[name] for name in ("none", "distil-layers-50", "prune-layers-50"))
    assert pruned.step_seconds < student.step_seconds
    assert pruned.latency_seconds < whole.latency_seconds  # type: ignore[operator]
    assert found["qat-int8"].step_seconds > whole.step_seconds


def test_a_teacher_has_to_fit_beside_its_student(found: dict[str, CompressionChoice]) -> None:
    room = found["distil-layers-50"].peak_bytes - 2**20
    own = priced("distil-layers-50", memory_bytes=room)["distil-layers-50"]
    assert not own.refusal
    assert own.peak_bytes <= room
    assert own.plan != found["distil-layers-50"].plan
    # Full memory leaves no room beside the fastest plan: one that holds less of its own is taken.
    large = setting(load_sizes("llama-3.1-8b"), find_device("h100-sxm"), 8, 64, 4096)
    student = by_name(large, "distil-layers-50")["distil-layers-50"]
    assert not student.refusal
    assert student.peak_bytes <= large.memory_bytes


def plan(*arguments: str) -> object:
    return RUNNER.invoke(app, ["--model", "llama-26m", "--gpus", "2", *arguments])


def test_the_command_prices_and_writes_them(tmp_path: Path) -> None:
    path, output = tmp_path / "machine.json", tmp_path / "plan.json"
    artifacts.write(path, "machine-profile", machine())
    done = plan(
        "--machine", str(path), "--compress", "prune-ffn-50,sparse-50", "--target", "size=0.9", "-o", str(output)
    )
    assert done.exit_code == 0, (done.output, done.exception)  # type: ignore[attr-defined]
    text = " ".join(done.output.split())  # type: ignore[attr-defined]
    assert "zeros are multiplied like any number" in text
    file = artifacts.read(output, "plan", PlanFile)
    assert [choice.recipe.name for choice in file.compression] == ["none", "prune-ffn-50", "sparse-50"]
    shipped = plan("--device", "h100-sxm", "--compress", "prune-ffn-50", "--json")
    assert shipped.exit_code == 0, (shipped.output, shipped.exception)  # type: ignore[attr-defined]
    rows = json.loads(shipped.stdout)["compression"]  # type: ignore[attr-defined]
    assert rows[1]["step_seconds"] < rows[0]["step_seconds"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--target", "size=0.5"), "without --compress"),
        (("--compress", "prune-toes-5"), "unknown compression"),
        (("--compress", "auto", "--target", "speed=1"), "--target speed=1"),
    ],
)
def test_bad_wishes_are_said(arguments: tuple[str, ...], sentence: str) -> None:
    done = plan("--device", "h100-sxm", *arguments)
    assert isinstance(done.exception, InputError)  # type: ignore[attr-defined]
    assert sentence in str(done.exception)  # type: ignore[attr-defined]


def test_they_stand_on_the_page_of_the_plans_with_what_they_miss(found: dict[str, CompressionChoice]) -> None:
    file = make_plan_file(Plan(data_parallel=2, micro_batch_size=4), compression=tuple(found.values()))
    text = [words for words in Page(render(content_of_file(file))).text if words.strip()]
    table = text[text.index("Compressed models") : text.index("The step")]
    for name, choice in found.items():
        words = table[table.index(name) :][:7]
        shown = [format_bytes(choice.stored_bytes), format_seconds(choice.step_seconds)]
        assert (not choice.refusal) == (set(shown) < set(words)), name
        assert (not choice.meets_targets) == ("misses a target" in words), name
    assert {choice.meets_targets for choice in found.values()} == {True, False}
    assert "Compressed models" not in Page(render(content_of_file(replace(file, compression=())))).text
