"""Plans for measured machines: what the file says of the machine, what a step rests on, what is tried."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import planner
from planner.notebook import Planned
from planner.request import USUAL_CODECS
from planner.space import evidence
from profiles import artifacts
from profiles.errors import InputError
from profiles.library import load_model
from profiles.machines.fingerprint import current_fingerprint
from profiles.machines.profile import LayerTiming, MachineProfile
from tests.machine_builders import curve, machine
from tests.test_learning import corrections

MODEL, SEQUENCE = load_model("llama-26m"), 64


def timed(own: MachineProfile, sizes: tuple[int, ...]) -> MachineProfile:
    """The machine with every layer of the model timed, at micro-batches of these sizes."""
    timings = [
        LayerTiming(
            workload=MODEL.workload.digest, layer=layer.name, precision="fp32", micro_batch_size=size,
            sequence_length=SEQUENCE, tensor_parallel=1, forward_seconds=0.01 * size, backward_seconds=0.02 * size,
            spread_fraction=0.02,
        )
        for layer in MODEL.precision_layers("fp32")
        for size in sizes
    ]  # fmt: skip
    return replace(own, layer_timings=tuple(timings))


@pytest.fixture
def ask(tmp_path):
    """Plans for a machine."""

    def asked(own: MachineProfile, num_devices: int = 2, **choices: object) -> Planned:
        artifacts.write(tmp_path / "machine.json", "machine-profile", own)
        choices = {"global_batch": 8, "sequence_length": SEQUENCE, **choices}
        return planner.plan("llama-26m", num_devices, machine=tmp_path / "machine.json", **choices)

    return asked


def test_the_file_says_of_which_machine_it_is(ask, tmp_path):
    own = machine(fingerprint=current_fingerprint("cpu"))
    plain = ask(own)
    assert (plain.file.machine_name, plain.file.machine_origin, plain.file.machine_device_kind) == (
        "round", "measured", "cpu",
    )  # fmt: skip
    assert own.fingerprint is not None
    assert plain.file.machine_fingerprint == own.fingerprint.digest
    assert plain.file.learned == {}
    assert "(made up)" in plain.best.prediction.mfu_denominator
    multiples = {"compute": 1.5}
    artifacts.write(tmp_path / "learned.json", "corrections", corrections(own, multiples))
    taught = ask(own, learned=tmp_path / "learned.json")
    assert taught.file.learned == multiples
    assert f"corrected by 12 plans that ran here, {tmp_path / 'learned.json'}" in taught.notes
    assert "corrected by 12 plans that ran here" in taught.best.prediction.assumptions
    assert taught.best.prediction.step_seconds > plain.best.prediction.step_seconds
    with pytest.raises(InputError, match="is of the machine round"):
        ask(replace(own, fingerprint=None), learned=tmp_path / "learned.json")


def test_a_step_rests_on_what_was_measured_at_its_size(ask):
    words = {
        "kernels": "compute from kernels timed on this machine",
        "layers": "compute from layers timed on this machine",
    }

    def widths(own: MachineProfile, **choices: object) -> tuple[dict[str, float], dict[str, tuple[str, ...]]]:
        found = ask(own, **choices).file.candidates
        width = {one.plan.id: one.prediction.high_seconds / one.prediction.step_seconds - 1 for one in found}
        return width, {one.plan.id: one.prediction.assumptions for one in found}

    plan = "dp2 mb4x1 fp32"
    alone, of_kernels = widths(machine())
    assert of_kernels[plan][0] == words["kernels"]
    at_size, of_layers = widths(timed(machine(), (4,)))
    assert of_layers[plan] == (words["layers"], f"the step rests on {evidence.MEASURED}")
    elsewhere, of_others = widths(timed(machine(), (2,)))
    assert of_others[plan][0] == words["layers"]
    assert f"on {evidence.SCALED}" in of_others[plan][1]
    assert at_size[plan] < elsewhere[plan]
    assert at_size[plan] < alone[plan]


def test_a_cpu_adds_to_each_operator_what_training_takes_besides_its_kernel(ask):
    plain, slower = (ask(machine(operator_seconds=seconds), 1, global_batch=1) for seconds in (0.0, 1e-3))
    layers = MODEL.precision_layers("fp32")
    kernels = sum(len(layers[index].operators) for index in MODEL.structure)
    added = slower.best.prediction.step_seconds - plain.best.prediction.step_seconds
    assert added == pytest.approx(1e-3 * kernels)


def test_a_tensor_costs_the_optimizer_of_each_rank_that_has_a_part_of_it(ask):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**MODEL.workload.config)
    with torch.device("meta"):
        num_tensors = len(list(AutoModelForCausalLM.from_config(config).parameters()))
    plain, slower = (
        {one.plan.id: one.prediction for one in ask(machine(optimizer_tensor_seconds=seconds)).file.candidates}
        for seconds in (0.0, 1e-3)
    )
    # Of ZeRO 1 each rank updates whole tensors, of ZeRO 2 and 3 a part of each.
    for name, share in (("", 1), (" zero1", 1 / 2), (" zero2", 1), (" zero3", 1)):
        plan = f"dp2 mb4x1{name} fp32"
        added = slower[plan].seconds["optimizer"] - plain[plan].seconds["optimizer"]
        assert added == pytest.approx(1e-3 * num_tensors * share)


def test_a_network_that_was_not_measured_is_off_its_data_sheet(ask):
    near = replace(machine(), links=tuple(link for link in machine().links if link.span == "node"))
    found = ask(near, 16, cluster="dgx-h100", global_batch=16)
    assert "nodes and network of NVIDIA DGX H100, InfiniBand NDR: data sheet, not measured" in found.notes
    assert "measured with 2 ranks: times of larger groups are extrapolated from those" in found.notes
    said = [words for one in found.file.candidates for words in one.prediction.assumptions]
    assert any(f"on {evidence.SHEET}" in words for words in said)
    changes = {change.what: change.change_fraction for change in found.sensitivity()}
    assert changes["messages that take twice as long"] > 0
    assert "half the network bandwidth" in changes
    assert "half the bandwidth inside nodes" not in changes


def test_ranks_beyond_those_measured_share_the_memory_of_their_host(ask):
    own = machine(devices_per_node=2)
    few, many = ask(own, 2), ask(own, 4)
    assert many.answer.space.at.memory_bytes == few.answer.space.at.memory_bytes / 2
    assert not any("ranks share" in note for note in few.notes)


def test_usual_codecs_are_those_that_the_machine_was_measured_for(ask):
    general = machine(bandwidth=1e7)
    own = replace(general, kernels=(*(one for one in general.kernels if one.kind != "codec"), curve("codec", "bf16")))
    said = " ".join(ask(own, codecs="auto").notes)
    assert "bf16" in said
    assert "powersgd" not in said
    every = " ".join(ask(general, codecs="auto").notes)
    assert all(f"gradients in {name}" in every or f"lossy ({name})" in every for name in USUAL_CODECS if name != "none")
    with pytest.raises(InputError, match="was not measured for codec int8"):
        ask(own, codecs=("none", "int8"))


def test_gpus_compute_in_16_bits_unless_asked_otherwise(ask):
    own = machine(device_kind="cuda")
    assert ask(own).best.plan.precision == "bf16"
    assert ask(machine()).best.plan.precision == "fp32"
    both = ask(own, precision=("fp32", "bf16"), global_batch=(8, 16))
    assert any("per token" in note for note in both.notes)
    with pytest.raises(InputError, match="has no measured rate for fp8"):
        ask(own, precision=("fp8",))
    with pytest.raises(InputError, match="has no measured rate for fp16: profile it at that precision"):
        ask(machine(), precision=("fp16",))
    with pytest.raises(InputError, match="unknown precision 'fp4'"):
        ask(own, precision=("fp4",))
    with pytest.raises(InputError, match="llama-26m takes 1 to"):
        ask(own, sequence_length=10**6)


def test_a_machine_answers_for_its_own_software_alone(ask):
    with pytest.raises(InputError, match="was measured with trainwright"):
        ask(machine(), stack="megatron-core")
    with pytest.raises(InputError, match="two kinds of devices"):
        ask(machine(), 16, cluster="dgx-h100:8,dgx-a100:8")
    with pytest.raises(InputError, match="either --machine FILE or --device NAME"):
        ask(machine(), device="h100-sxm")


def test_a_gain_no_larger_than_steps_differ_is_said(ask):
    found = ask(machine(bandwidth=1e12, latency=1e-9))
    gain = found.file.candidates[found.file.baseline].prediction.step_seconds / found.best.prediction.step_seconds - 1
    said = [note for note in found.notes if "no more than steps of one plan differ" in note]
    assert bool(said) == (0 < gain <= evidence.REPEAT_FRACTION)


def test_lossy_gradients_that_gain_too_little_are_a_note():
    golden = Path(__file__).parent / "golden" / "llama-26m_epyc_2_2026-11-23.machine.json"
    found = planner.plan("llama-26m", 2, machine=golden, global_batch=8, sequence_length=128, codecs="auto")
    assert found.best.plan.codec == "none"
    said = [note for note in found.notes if note.startswith("gradients in ")]
    assert any("faster per token, too little to justify lossy gradients" in note for note in said)
    assert any("slower per token" in note for note in said)
    assert not any("-" in note.split(" %")[0].split(": ")[1] for note in said)
