"""What a rank on a GPU does in tests marked `gpu`: enters a group, trains a few steps, tells what it held."""

from typing import Any

import torch

from executor.mesh import Meshes
from executor.observe.attention import AttentionWatch
from executor.observe.device_memory import device_memory
from executor.run.batches import default_text, load_text
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.ranks.devices import gpu_settings
from profiles.ranks.rank import join_group
from profiles.workloads.loading import load_workload
from profiles.workloads.precision import set_products
from tests.plan_builders import GLOBAL_BATCH, LLAMA, NUM_STEPS, SEED, SEQUENCE


def train(payload: dict[str, Any]) -> dict[str, Any]:
    """Losses of the plan's first steps, attention kernels, memory and settings."""
    plan = validate(payload["plan"], Plan, "the test")
    text = load_text(default_text(), SEQUENCE, SEED)
    with join_group("cuda", 60.0) as rank:
        trainer = Trainer(plan, load_workload(LLAMA), rank, SEED, Meshes("cuda", 60.0).of(plan))
        losses = []
        for step in range(NUM_STEPS):
            with AttentionWatch() as watch:
                loss, _ = trainer.step(*text.batch(step, GLOBAL_BATCH))
            losses.append(float(loss))
        memory = device_memory(rank.device)
        segments = torch.cuda.memory_snapshot()
        return {
            "losses": losses, "attention": watch.kernels, "settings": gpu_settings(rank.device),
            "bytes": [memory.allocated_bytes, memory.reserved_bytes, memory.in_use_bytes],
            "expandable": any(segment.get("is_expandable", False) for segment in segments),
        }  # fmt: skip


def convolve(payload: dict[str, Any]) -> float:
    """By how much a convolution in a precision is off, over its largest value."""
    with join_group("cuda", 60.0) as rank:
        torch.manual_seed(0)
        images, weights = torch.randn(8, 64, 32, 32, device=rank.device), torch.randn(64, 64, 3, 3, device=rank.device)
        set_products(payload["precision"])
        got = torch.nn.functional.conv2d(images, weights).double()
        exact = torch.nn.functional.conv2d(images.double().cpu(), weights.double().cpu()).to(rank.device)
        return float((got - exact).abs().max() / exact.abs().max())
