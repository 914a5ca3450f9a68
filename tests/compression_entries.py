"""What the ranks of the compression tests run: a small model trained on real text, gradients compressed."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

import profiles.codecs.ddp_hooks
from executor.mesh import Meshes
from executor.run.batches import default_text, load_text
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.ranks.rank import join_group
from profiles.workloads.loading import load_workload
from tests.plan_builders import LLAMA, SEED

SEQUENCE, SAMPLES = 64, 8
WITHOUT_FEEDBACK, OF_SHARDS = " without feedback", " of shards"


def train_with(payload: dict[str, Any]) -> dict[str, list[float]]:
    """Losses of the global batch by codec, over so many steps on two ranks."""
    text = load_text(default_text(), SEQUENCE, SEED)
    losses: dict[str, list[float]] = {}
    keep = profiles.codecs.ddp_hooks.Feedback.keep
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        for name in payload["codecs"]:
            coded = name.removesuffix(WITHOUT_FEEDBACK).removesuffix(OF_SHARDS)
            zero_stage = 3 if name.endswith(OF_SHARDS) else 0
            plan = Plan(data_parallel=2, micro_batch_size=SAMPLES // 2, codec=coded, zero_stage=zero_stage)
            trainer = Trainer(plan, load_workload(LLAMA), rank, SEED, meshes.of(plan))
            if name.endswith(WITHOUT_FEEDBACK):
                profiles.codecs.ddp_hooks.Feedback.keep = lambda *_: None  # type: ignore[method-assign]
            losses[name] = []
            for step in range(payload["steps"]):
                loss, _ = trainer.step(*text.batch(step, SAMPLES))
                assert loss is not None
                total = loss.clone()
                dist.all_reduce(total)
                losses[name].append(float(total) / rank.num_ranks)
            profiles.codecs.ddp_hooks.Feedback.keep = keep  # type: ignore[method-assign]
    return losses
