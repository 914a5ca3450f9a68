"""The first steps of a task in one process, in a loop of plain torch that knows the promises of the executor alone.

Promised are AdamW's learning rate, the means over micro-batches, and with what the random numbers of each begin.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from profiles.workloads.task import Batch, Task

# Of the weights and of random numbers; what a step is made of.
SEED, STEPS, SAMPLES, MICRO_BATCH = 3, 3, 8, 2
LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Losses and gradient norms of steps."""

    loss: tuple[float, ...]
    norm: tuple[float, ...]


def one_process(task: Task, *, silent: bool) -> Steps:
    """The first steps; silent ones draw no random numbers but those of the loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = task.build().train()
        if silent:
            _without_dropout(module)
        optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
        losses, norms = [], []
        for step in range(STEPS):
            batches = micro_batches(task, step)
            shares = []
            for index, batch in enumerate(batches):
                seed = (SEED * 1_000_003 + step) * 65_537 + index
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed % 2**32)
                share = task.loss(module, batch) / len(batches)
                share.backward()
                shares.append(float(share.detach()))
            losses.append(math.fsum(shares))
            norms.append(_norm(parameter.grad for parameter in module.parameters() if parameter.grad is not None))
            optimizer.step()
            optimizer.zero_grad()
    return Steps(loss=tuple(losses), norm=tuple(norms))


def micro_batches(task: Task, step: int) -> list[Batch]:
    """The batches whose losses and gradients are averaged in a step."""
    samples = task.batches(step, SAMPLES)
    return [task.collate(samples[start : start + MICRO_BATCH]) for start in range(0, SAMPLES, MICRO_BATCH)]


def _without_dropout(module: nn.Module) -> None:
    """Let nothing be dropped, while norms use the statistics of their batch as in training."""
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            part.train()
        elif isinstance(part, nn.RNNBase):
            part.dropout = 0.0


def _norm(gradients: Iterator[Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
