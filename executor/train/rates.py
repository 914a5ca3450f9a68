"""How the learning rate goes over the steps of a training, as a factor of the rate that is given. Torch-free."""

from __future__ import annotations

import math

from executor.train.settings import ScheduleSettings


def rate_factor(schedule: ScheduleSettings, step: int, num_steps: int) -> float:
    """The factor of step `step`, from 0, of `num_steps` in all: it depends on these alone, so that nothing is kept.

    The first step of a warm-up has a part of the rate, never 0. Constant, linear and cosine decay as in GPT-3's and
    Llama's reports; warm-up, stable, decay as in Hu et al., MiniCPM, 2024 (arXiv 2404.06395), linear at the end.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return 1.0
    first = num_steps - schedule.decay_steps if schedule.name == "wsd" else schedule.warmup_steps
    done = min(1.0, max(0.0, (step - first) / max(1, num_steps - first)))
    left = (1 + math.cos(math.pi * done)) / 2 if schedule.name == "cosine" else 1 - done
    return schedule.final_fraction + (1 - schedule.final_fraction) * left
