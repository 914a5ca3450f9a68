"""A block of steps in the words of a training log."""

from __future__ import annotations

from typing import Any

from executor.run.runner import Runner
from planner.prediction import PlanFile, Prediction

FLOPS_PER_PARAMETER_AND_TOKEN = 6


def log_values(file: PlanFile, runner: Runner, prediction: Prediction, num_steps: int) -> dict[str, Any]:
    """The runner's latest steps, by name: per step and device, but for `tps`, which is of the whole job.

    `tflops` counts six FLOPs per parameter and token; `mfu` is over the denominator that the prediction names.
    """
    seconds = sum(runner.steps.seconds[-num_steps:]) / num_steps
    tokens = runner.plan.global_batch_size * file.sequence_length / seconds
    flops = FLOPS_PER_PARAMETER_AND_TOKEN * file.num_parameters * tokens / runner.plan.num_devices
    return {
        "plan": runner.plan.id,
        "step": runner.num_steps_done,
        "loss": runner.latest_loss(),
        "memory_gib": runner.peak_bytes / 2**30,
        "seconds": seconds,
        "tps": tokens,
        "tflops": flops / 1e12,
        "mfu": prediction.mfu * prediction.step_seconds / seconds,
    }


def log_line(values: dict[str, Any]) -> str:
    """The same as a line."""
    loss = "on the last stage" if values["loss"] is None else f"{values['loss']:.4f}"
    return (
        f"{values['plan']}  step: {values['step']}  loss: {loss}  memory: {values['memory_gib']:.2f}GiB  "
        f"tps: {values['tps']:,.0f}  tflops: {values['tflops']:.3f}  mfu: {values['mfu']:.1%}"
    )
