"""One GPU does what a plain loop on a CPU does, and is told what it should be. Run where there is one: `make gpu`."""

import functools
from dataclasses import asdict

import pytest
import torch

from executor.axes.optimizer import LEARNING_RATE
from executor.run.batches import default_text, load_text
from planner.plans import Plan
from profiles.machines.fingerprint import current_device_kind
from profiles.ranks.launcher import launch
from profiles.workloads.loading import load_workload
from tests.plan_builders import GLOBAL_BATCH, LLAMA, NUM_LAYERS, NUM_STEPS, SEED, SEQUENCE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.alone,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that this torch computes on"),
]
# Of losses, relative, against fp32 on a CPU.
TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 2e-2}
HALF = GLOBAL_BATCH // 2


def plan(precision="fp32", **more):
    return Plan(micro_batch_size=HALF, num_microbatches=2, precision=precision, **more)


@functools.cache
def plain_losses():
    """Losses before each step of a loop that shares the layers and the data alone, on a CPU in fp32."""
    model = load_workload(LLAMA).build(0, NUM_LAYERS, SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    text, losses = load_text(default_text(), SEQUENCE, SEED), []
    for step in range(NUM_STEPS):
        inputs, targets = text.batch(step, GLOBAL_BATCH)
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train(own):
    return launch("tests.gpu_entries:train", {"plan": asdict(own)}, 1, "cuda")


def test_the_gpu_is_found():
    assert current_device_kind() == "cuda"


@pytest.mark.parametrize(
    "own",
    [plan(), plan("tf32"), plan("bf16"), plan("bf16", recompute="full"), plan("bf16", compiled=True)],
    ids=lambda own: own.id,
)
def test_a_gpu_trains_as_a_plain_loop_on_a_cpu(own):
    if own.precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("tf32 needs compute capability 8.0")
    told = train(own)
    assert told["losses"] == pytest.approx(plain_losses(), rel=TOLERANCE[own.precision])
    allocated, reserved, in_use = told["bytes"]
    assert 0 < allocated <= reserved <= in_use
    assert told["attention"]
    assert told["settings"]["tf32 in products"] == str(own.precision == "tf32")


def test_memory_grows_in_place(monkeypatch):
    if torch.version.hip:
        pytest.skip("left alone on AMD's devices")
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert train(plan())["expandable"]


@pytest.mark.parametrize("kernel", ["efficient", "math"])
def test_the_attention_asked_for_is_the_one_that_computes(monkeypatch, kernel):
    monkeypatch.setenv("TRAINWRIGHT_ATTENTION", kernel)
    assert train(plan("bf16"))["attention"] == [kernel]


def test_convolutions_are_in_full_where_products_are():
    off = {name: launch("tests.gpu_entries:convolve", {"precision": name}, 1, "cuda") for name in ("fp32", "tf32")}
    assert off["fp32"] < 1e-5
    if torch.cuda.get_device_capability() >= (8, 0):
        assert off["tf32"] > 1e-5
