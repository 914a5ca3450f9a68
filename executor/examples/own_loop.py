"""An example trained in a loop as a user writes one, around `executor.apply`; torchrun or srun start a rank of it.

Used by `python -m executor.examples --apply`, which holds its losses against those of `execute`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

import executor
from executor.axes.optimizer import LEARNING_RATE
from executor.examples.run import example
from executor.legality import checked
from profiles.terminal import console
from profiles.workloads.randomness import begin_random
from profiles.workloads.task import Batch

# Of the weights and of what a step draws: that of `execute`, unless it is told another.
SEED = 0
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="Which example.")],
    plan_file: Annotated[Path, typer.Argument(help="Its plan file.")],
    steps: Annotated[int, typer.Option(min=1)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the losses go.")],
) -> None:
    """Train an example by the best plan of a file, and write down the losses."""
    task = example(name).task()
    _, candidate, _ = checked(plan_file)
    samples = candidate.plan.micro_batch_size * candidate.plan.num_microbatches

    def batch_of(step: int, replica: int) -> Batch:
        drawn = task.batches(step, candidate.plan.global_batch_size)
        batch: Batch = task.collate(drawn[replica * samples : (replica + 1) * samples])
        return batch

    begin_random(SEED)
    model = task.build().train()
    with executor.apply(plan_file, model, loss=task.loss, example=batch_of(0, 0), seed=SEED) as job:
        optimizer = job.optimizer(torch.optim.AdamW, lr=LEARNING_RATE, fused=True)
        losses = []
        for step in range(steps):
            losses.append(job.step(batch_of(step, job.replica)))
            optimizer.step()
        if job.rank.rank == 0:
            output.write_text(json.dumps([float(loss) for loss in losses]), encoding="utf-8")


if __name__ == "__main__":
    console.run(app)
