"""A vision transformer on handwritten digits: the library's own model, layouts, and what compression leaves of it."""

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification
from typer.testing import CliRunner

from executor.command import app
from executor.compress.evaluation import num_stored_bytes
from executor.compress.export_onnx import export_onnx
from executor.compress.results import CompressionResult
from executor.compress.train_one import CompressionOrder
from executor.run.batches import load_images
from executor.run.checks import facts_of_workload
from executor.run.measurement import RunFile
from planner.compression.recipes import CompressionChoice, recipe, risk, smaller, smaller_weights, stored_bytes
from planner.legality import refusal
from planner.plans import Plan
from planner.space.weights import weights_of
from profiles import artifacts
from profiles.artifacts import dump, validate
from profiles.errors import InputError
from profiles.files import write_text
from profiles.library import load_sizes
from profiles.models.operators import evaluate
from profiles.ranks.launcher import launch
from profiles.tracing.trace import trace
from profiles.workloads.int8_linears import quantise
from profiles.workloads.loading import load_workload
from profiles.workloads.vision import patches_of
from profiles.workloads.workload import Workload
from tests.plan_builders import VIT, VIT_TOKENS, make_plan_file
from tests.workload_builders import onnxruntime_logits

RUNNER = CliRunner()
WHOLE = weights_of(VIT.name, VIT.config)
DATA = Plan(data_parallel=2, micro_batch_size=64)
NAMES = (
    "none", "prune-ffn-50", "prune-heads-50", "prune-layers-50", "distil-layers-50-hidden", "sparse-50", "sparse-2:4",
    "int8-dynamic", "qat-int8",
)  # fmt: skip
GUESSING = 0.1


def built(workload: Workload) -> nn.Sequential:
    return workload.build(0, len(workload.layers), seed=3)


def test_answers_are_those_of_the_library() -> None:
    model = built(load_workload(VIT)).eval()
    config = ViTConfig(**{key: value for key, value in VIT.config.items() if key not in ("model_type", "num_labels")})
    config.num_labels = 10
    theirs = ViTForImageClassification(config).eval()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters())
    own = dict(model.named_parameters())
    state = {
        "vit.embeddings.cls_token": own["0.class_token"][None],
        "vit.embeddings.position_embeddings": own["0.positions.weight"][None],
        "vit.embeddings.patch_embeddings.projection.weight": own["0.projection.weight"].view(64, 1, 2, 2),
        "vit.embeddings.patch_embeddings.projection.bias": own["0.projection.bias"],
        "vit.layernorm.weight": own["5.norm.weight"],
        "vit.layernorm.bias": own["5.norm.bias"],
        "classifier.weight": own["5.projection.weight"],
        "classifier.bias": own["5.projection.bias"],
    }
    for name in theirs.state_dict():
        # vit.layers.N.*, or in older versions vit.encoder.layer.N.*
        found = re.fullmatch(r".*\.layers?\.(\d+)\.(.*)", name)
        if found:
            state[name] = own[f"{int(found[1]) + 1}.block.{found[2]}"]
    theirs.load_state_dict(state)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(patches_of(images, 2)), theirs(images).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*NAMES, "int8-weights"])
def test_parameters_and_bytes_are_those_of_the_real_model(name: str) -> None:
    own = recipe(name)
    model = built(load_workload(replace(VIT, config=smaller(VIT.config, own))))
    assert smaller_weights(WHOLE, own).num_parameters == sum(p.numel() for p in model.parameters())
    if own.scheme:
        quantise(model, own.scheme)
    assert stored_bytes(WHOLE, own) == num_stored_bytes(model)


def test_labels_may_be_given_by_their_names() -> None:
    config = {key: value for key, value in VIT.config.items() if key != "num_labels"}
    named = {**config, "id2label": {str(number): f"digit {number}" for number in range(10)}}
    assert weights_of("named", named).linears == WHOLE.linears
    assert load_workload(replace(VIT, config=named)).vocab_size == 10


def test_it_is_traced_and_not_priced_by_sizes(tmp_path: Path) -> None:
    profile = trace(load_workload(VIT), ("fp32",))
    assert profile.num_parameters == WHOLE.num_parameters
    # Two FLOPs a weight and token, one answer on the way out.
    embedding, block, head = (float(evaluate(one.flops("forward"), 3, VIT_TOKENS, 1)) for one in profile.layers["fp32"])
    assert embedding == 2 * 3 * VIT_TOKENS * 4 * 64
    assert head == 2 * 3 * 64 * 10
    linears, scores = 4 * 64 * 64 + 2 * 64 * 128, 2 * VIT_TOKENS * 64
    assert block == 2 * 3 * VIT_TOKENS * (linears + scores)
    config = tmp_path / "vit.json"
    config.write_text(json.dumps(VIT.config))
    assert load_sizes(str(config)) is None


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(tensor_parallel=2, vocab_parallel=True), "vocab_parallel"),
        (Plan(tensor_parallel=2, sequence_parallel=True), "sequence_parallel"),
        (Plan(context_parallel=2), "context_parallel"),
    ],
)
def test_what_images_do_not_allow_is_refused(plan: Plan, words: str) -> None:
    assert words in refusal(plan, facts_of_workload(load_workload(VIT)), VIT_TOKENS)


LAYOUTS = [
    Plan(data_parallel=2, micro_batch_size=2, num_microbatches=2, zero_stage=3, recompute="full"),
    Plan(tensor_parallel=2, micro_batch_size=8),
    Plan(pipeline_parallel=2, schedule="1f1b", micro_batch_size=2, num_microbatches=4, stage_bounds=(0, 3)),
]


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize("plan", [LAYOUTS[0], *(pytest.param(p, marks=pytest.mark.slow) for p in LAYOUTS[1:])])
def test_layouts_train_what_one_device_does(plan: Plan, tmp_path: Path) -> None:
    path, output = tmp_path / "plan.json", tmp_path / "run.json"
    write_text(path, dump("plan", make_plan_file(plan, spec=VIT, sequence=VIT_TOKENS)))
    done = RUNNER.invoke(app, [str(path), "--steps", "3", "--warmup", "3", "-o", str(output)])
    assert done.exit_code == 0, (done.output, done.exception)
    file = artifacts.read(output, "run", RunFile)
    assert file.runs[0].measurement.loss_check.status == "passed"
    assert "digits" in file.environment.data


def test_images_of_ones_own(tmp_path: Path) -> None:
    workload, path = load_workload(VIT), tmp_path / "images.npz"
    images, labels = np.random.default_rng(0).random((20, 8, 8)), np.arange(20) % 10
    np.savez(path, images=images, labels=labels)
    own = load_images(str(path), workload, 0)
    # Behind the blank, the second patch is the third and fourth column of the first two rows.
    assert own.patches.shape == (20, VIT_TOKENS, 4)
    assert own.patches[5, 2].tolist() == pytest.approx(images[5, :2, 2:4].flatten().tolist())
    np.savez(path, images=images, labels=labels + 1)
    with pytest.raises(InputError, match="labels from 1 to 10"):
        load_images(str(path), workload, 0)
    np.savez(path, images=images[:, :4], labels=labels)
    with pytest.raises(InputError, match="reads"):
        load_images(str(path), workload, 0)
    path.write_text("no arrays")
    with pytest.raises(InputError, match=r"as \.npz"):
        load_images(str(path), workload, 0)


def choice(name: str) -> CompressionChoice:
    own = recipe(name)
    return CompressionChoice(
        recipe=own,
        plan=DATA,
        num_parameters=int(smaller_weights(WHOLE, own).num_parameters),
        stored_bytes=stored_bytes(WHOLE, own),
        step_seconds=0.1,
        peak_bytes=1e7,
        latency_seconds=None,
        risk=risk(own),
    )


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_recipes_are_judged_by_what_they_read() -> None:
    file = make_plan_file(DATA, spec=VIT, sequence=VIT_TOKENS)
    file = replace(file, compression=tuple(choice(name) for name in NAMES))
    order = CompressionOrder(
        first_steps=150, more_steps=50, seed=0, data_file="", device_kind="cpu", timeout_seconds=60
    )
    fields = launch(
        "executor.compress.session:run_compression", {"file": asdict(file), "order": asdict(order)}, 2, "cpu"
    )["results"]
    found = {result.recipe.name: result for result in (validate(one, CompressionResult, "the test") for one in fields)}
    for name, result in found.items():
        expected = choice(name)
        assert (result.num_parameters, result.stored_bytes) == (expected.num_parameters, expected.stored_bytes), name
    whole = found["none"]
    assert whole.right_fraction > 8 * GUESSING
    assert found["int8-dynamic"].right_fraction == pytest.approx(whole.right_fraction, abs=0.02)
    for name, result in found.items():
        # Guessing is right once in ten; what was taken away is missed at first.
        assert result.right_fraction > 4 * GUESSING, name
        if recipe(name).method in ("prune", "distil"):
            assert result.loss < result.loss_before, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter and what it loads
def test_it_is_handed_over(tmp_path: Path) -> None:
    model, patches = built(load_workload(VIT)).eval(), torch.rand(3, VIT_TOKENS, 4)
    export_onnx(model, patches[:1], tmp_path / "vit.onnx")
    with torch.no_grad():
        torch.testing.assert_close(
            onnxruntime_logits(tmp_path / "vit.onnx", patches), model(patches), atol=1e-4, rtol=1e-4
        )


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


def test_a_pickle_among_images_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, images=np.array([Evil(tmp_path / "ran")], dtype=object), labels=np.array([0]))
    with pytest.raises(InputError, match=r"as \.npz"):
        load_images(str(path), load_workload(VIT), 0)
    assert not (tmp_path / "ran").exists()
    with np.load(path, allow_pickle=True) as found:
        assert len(found["images"]) == 1
    assert (tmp_path / "ran").exists()
