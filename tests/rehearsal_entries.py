"""What the ranks of the rehearsal's tests run: plans through the executor's own trainer, counted as in a rehearsal."""

import gc
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from executor.mesh import Meshes
from executor.observe.counters import Ledger
from executor.run.batches import default_text, load_text
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.ranks.rank import join_group
from profiles.workloads.loading import load_workload
from tests.parity_entries import SPECS
from tests.plan_builders import SEED, SEQUENCE


def count_all(cases: list[tuple[str, dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Per case, what each rank's ledger says of its third step."""
    text = load_text(default_text(), SEQUENCE, SEED)
    results = []
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        for name, fields in cases:
            plan = validate(fields, Plan, "the test")
            mesh = meshes.of(plan)
            with Ledger(plan, mesh) as ledger:
                trainer = Trainer(plan, load_workload(SPECS[name]), rank, SEED, mesh)
                # DDP orders its buckets anew in the second step.
                for step in range(2):
                    trainer.step(*text.batch(step, plan.global_batch_size))
                gc.collect()
                ledger.clear()
                trainer.step(*text.batch(2, plan.global_batch_size))
                own = {
                    "flops": dict(ledger.flops),
                    "messages": [asdict(message) for message in ledger.messages],
                    "peak_bytes": ledger.peak_bytes,
                }
            del trainer
            gc.collect()
            everyone: list[Any] = [None] * rank.num_ranks
            dist.all_gather_object(everyone, own)
            results.append(everyone)
    return results
