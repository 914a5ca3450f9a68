"""The ways in which a model of the matrix is tried, each ending in a word or two for the table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from profiles.models.operators import PHASES, evaluate
from profiles.models.profile import ModelProfile, WorkloadSpec
from profiles.tracing.task_trace import trace_task
from profiles.workloads.task import Task
from profiles.workloads.task_loading import load_task
from tests.matrix.by_torch import measured

# Samples of the step that torch is asked about: as many as no run has that is traced.
SAMPLES = 6


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one model: ours over torch's FLOPs and saved bytes, and what is refused, in words."""

    name: str
    task: str = ""
    layers: str = ""
    flops: float = 0.0
    saved: float = 0.0
    plan: str = ""
    refused: str = ""


def totals(profile: ModelProfile, samples: int, size: int) -> tuple[float, float]:
    """FLOPs of a step and bytes that it saves, as the profile has them."""
    at = (samples, size, 1)
    layers = list(profile.each_layer("fp32"))
    flops = sum(float(evaluate(layer.flops(phase), *at)) for layer in layers for phase in PHASES)
    return flops, sum(float(evaluate(layer.saved_bytes, *at)) for layer in layers)


def traced(spec: WorkloadSpec, size: int, trusted: Iterable[str] = ()) -> tuple[Task, ModelProfile]:
    """The task of a model and its trace in fp32."""
    task = load_task(spec, tuple(trusted), size=size)
    return task, trace_task(spec, task, ("fp32",))


def against_torch(task: Task, profile: ModelProfile) -> tuple[float, float]:
    """Our FLOPs over torch's, and our saved bytes over those of a real run."""
    ours, theirs = totals(profile, SAMPLES, task.size), measured(task, SAMPLES, task.size)
    return ours[0] / theirs[0], ours[1] / theirs[1]
