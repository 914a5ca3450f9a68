"""What an example is judged by after its training: a number on samples held out, and that of a trivial answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from profiles.workloads.task import Batch, Sample, Task

# As many held-out samples at once as leave little in memory.
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A measure on held-out samples, and what it is for the named answer that takes no training."""

    measure: str
    value: float
    baseline: str
    baseline_value: float
    higher_is_better: bool = True
    also: str = ""

    @property
    def beats_baseline(self) -> bool:
        """Whether training was of use; a value that is no number was not."""
        if self.higher_is_better:
            return self.value > self.baseline_value
        return self.value < self.baseline_value

    def __str__(self) -> str:
        verdict = "better than" if self.beats_baseline else "NO BETTER THAN"
        also = f" ({self.also})" if self.also else ""
        return f"{self.measure} {self.value:.3f}, {verdict} {self.baseline}: {self.baseline_value:.3f}{also}"


def outputs(
    task: Task, module: nn.Module, samples: list[Sample], answer: Callable[[nn.Module, Batch], Any]
) -> list[Any]:
    """What `answer` makes of each batch of the samples, in order, without gradients or dropout."""
    module.eval()
    with torch.no_grad():
        return [answer(module, task.collate(samples[start : start + BATCH])) for start in range(0, len(samples), BATCH)]
