"""Steps in the words of a training log."""

from __future__ import annotations

from typing import Any

from executor.axes.loss_scale import LossScale
from planner.plans import Plan
from planner.prediction import PlanFile, Prediction

FLOPS_PER_PARAMETER_AND_TOKEN = 6


def log_values(
    file: PlanFile,
    plan: Plan,
    prediction: Prediction,
    seconds: float,
    *,
    step: int,
    loss: float | None,
    memory_bytes: float,
) -> dict[str, Any]:
    """Some steps that took so many seconds each: per step and device, but for `tps`, which is of the whole job.

    `tflops` counts six FLOPs per parameter and token; `mfu` is over the denominator that the prediction names. What was
    predicted of time and memory stands beside what was measured.
    """
    tokens = plan.global_batch_size * file.sequence_length / seconds
    flops = FLOPS_PER_PARAMETER_AND_TOKEN * file.num_parameters * tokens / plan.num_devices
    return {
        "plan": plan.id,
        "step": step,
        "loss": loss,
        "memory_gib": memory_bytes / 2**30,
        "predicted_memory_gib": prediction.peak_bytes / 2**30,
        "seconds": seconds,
        "predicted_seconds": prediction.step_seconds,
        "tps": tokens,
        "tflops": flops / 1e12,
        "mfu": prediction.mfu * prediction.step_seconds / seconds,
    }


def scale_values(scale: LossScale | None) -> dict[str, Any]:
    """What a log says of the scale of losses in fp16: what it is, and how many steps were skipped for it."""
    return {} if scale is None else {"loss_scale": scale.scale, "skipped_steps": scale.num_skipped}


def log_line(values: dict[str, Any]) -> str:
    """The same on a line, with the rate and the norm where a training has them, and the scale of fp16."""
    loss = "on the last stage" if values["loss"] is None else f"{values['loss']:.4f}"
    scale = ""
    if "loss_scale" in values:
        scale = f"loss scale: {values['loss_scale']:g}  skipped: {values['skipped_steps']}  "
    rate = f"lr: {values['lr']:.3g}  " if "lr" in values else ""
    norm = f"grad norm: {values['gradient_norm']:.3g}  " if "gradient_norm" in values else ""
    return (
        f"{values['plan']}  step: {values['step']}  loss: {loss}  {rate}{norm}{scale}"
        f"memory: {values['memory_gib']:.2f}GiB  tps: {values['tps']:,.0f}  "
        f"tflops: {values['tflops']:.3f}  mfu: {values['mfu']:.1%}"
    )
