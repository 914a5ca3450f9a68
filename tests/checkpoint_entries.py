"""What the ranks of the checkpoint tests run: some steps of a plan, saved, and more steps of another that goes on."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from executor.mesh import Meshes
from executor.run.batches import default_text, load_text
from executor.run.checkpoint import Progress, latest, read_progress, restore
from executor.run.saving import save
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.ranks.rank import join_group
from profiles.workloads.loading import load_workload
from tests.parity_entries import SPECS
from tests.plan_builders import GLOBAL_BATCH, SEED, SEQUENCE


def save_and_go_on(payload: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Per pair of plans and rank: losses of the first before and after it is saved, and of the second restored."""
    text, workload = load_text(default_text(), SEQUENCE, SEED), load_workload(SPECS[payload["model"]])
    results = []
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        for number, (first, second) in enumerate(payload["pairs"]):
            folder = Path(payload["folder"]) / str(number)
            losses: dict[str, list[float | None]] = {"before": [], "after": [], "restored": []}
            plan = validate(first, Plan, "the test")
            trainer = Trainer(plan, workload, rank, SEED, meshes.of(plan))

            def step(own: Trainer, index: int, losses: list[float | None]) -> None:
                loss, _ = own.step(*text.batch(index, GLOBAL_BATCH))
                losses.append(None if loss is None else float(loss))

            for index in range(2):
                step(trainer, index, losses["before"])
            save(folder, Progress(step=2, model=payload["model"], seed=SEED, global_batch_size=GLOBAL_BATCH), trainer)
            for index in range(2, 4):
                step(trainer, index, losses["after"])
            del trainer
            plan = validate(second, Plan, "the test")
            # Another seed: what is not restored would show.
            trainer = Trainer(plan, workload, rank, SEED + 1, meshes.of(plan))
            path = latest(folder)
            assert path is not None
            assert read_progress(path).step == 2
            restore(path, trainer)
            for index in range(2, 4):
                step(trainer, index, losses["restored"])
            del trainer
            everyone: list[Any] = [None] * rank.num_ranks
            dist.all_gather_object(everyone, losses)
            results.append(everyone)

    return results
