"""AdamW that tells the norm of what it is given, whoever wraps it and cuts its parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import AdamW


class WatchedAdamW(AdamW):
    """torch's AdamW, which adds up the squares of its gradients where it is asked to."""

    square: float = 0.0
    is_watched: bool = False

    def watch(self, is_watched: bool) -> None:
        """Begin a step, whose gradients are or are not added up."""
        self.square, self.is_watched = 0.0, is_watched

    def step(self, closure: Any = None) -> Any:
        """Look at the gradients, of all parameters or of those that it is given in turns, and take the step."""
        if self.is_watched:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        norm = torch.linalg.vector_norm(parameter.grad.detach(), dtype=torch.float64)
                        self.square += float(norm) ** 2
        return super().step(closure)

    def norm(self, groups: Sequence[dist.ProcessGroup], device: torch.device) -> float:
        """The 2-norm of the gradients since `watch`, over the ranks of groups that each have others; collective."""
        total = torch.tensor(self.square, dtype=torch.float64, device=device)
        for group in groups:
            dist.all_reduce(total, group=group)
        return math.sqrt(float(total))
