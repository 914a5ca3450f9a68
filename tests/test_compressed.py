"""Prices of compressed models on a machine of round numbers, and the command that asks for them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner.command import app
from planner.compression.prices import compression_choices
from planner.compression.recipes import CompressionChoice, recipes, smaller_weights
from planner.measured.search import Choices, search
from planner.prediction import PlanFile
from planner.space.weights import weights_of
from profiles import artifacts
from profiles.errors import InputError
from profiles.library import load_model
from profiles.tracing.trace import trace
from profiles.workloads.loading import load_workload
from tests.machine_builders import curve, machine
from tests.plan_builders import LLAMA

RUNNER = CliRunner()
FLOPS, SEQUENCE = 1e11, 128
CHOICES = Choices(num_devices=2, global_batch_size=8, sequence_length=SEQUENCE, precisions=("fp32",))
NAMES = "prune-ffn-50,prune-heads-50,prune-layers-50,distil-layers-50,sparse-50,int8-dynamic,qat-int8"


def priced(names: str, targets: dict[str, float] | None = None, **changes: object) -> dict[str, CompressionChoice]:
    found = search(machine(flops=FLOPS, **changes), load_model("llama-26m"), CHOICES)  # type: ignore[arg-type]
    return {choice.recipe.name: choice for choice in compression_choices(found, recipes(names), targets or {})}


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
    answers = 2 * weights * SEQUENCE * CHOICES.global_batch_size / 2 / FLOPS
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
    low = replace(CHOICES, precisions=("bf16",))
    here, model, names = machine(flops=FLOPS), load_model("llama-26m"), recipes("prune-layers-50")
    own = [compression_choices(search(here, model, choices), names, {}) for choices in (CHOICES, low)]
    assert [c.latency_seconds for c in own[0]] == pytest.approx([c.latency_seconds for c in own[1]])


def test_two_of_four_are_zero_where_four_divides_the_rows() -> None:
    own = priced("sparse-2:4")
    assert not own["sparse-2:4"].refusal
    assert own["sparse-2:4"].latency_seconds == own["none"].latency_seconds
    assert "GPUs" in own["sparse-2:4"].note


def test_rows_that_four_does_not_divide_are_refused() -> None:
    odd = trace(load_workload(replace(LLAMA, config={**LLAMA.config, "intermediate_size": 130})), ("fp32",))
    found = search(machine(), odd, replace(CHOICES, sequence_length=64))
    assert "no multiple of four" in compression_choices(found, recipes("sparse-2:4"), {})[1].refusal


def test_parameters_are_those_of_the_smaller_weights(found: dict[str, CompressionChoice]) -> None:
    sizes = weights_of("m", load_model("llama-26m").workload.config)
    for choice in found.values():
        assert choice.num_parameters == smaller_weights(sizes, choice.recipe).num_parameters


def test_what_cannot_be_had_keeps_its_reason() -> None:
    found = search(machine(), load_model("gpt2-small"), CHOICES)
    heads = compression_choices(found, recipes("prune-heads-50"), {})[1]
    assert "as wide as its hidden states" in heads.refusal
    assert not heads.on_front


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
