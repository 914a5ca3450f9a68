"""The ways in which a model of the matrix is tried, each ending in a few words for the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from planner.ask import ask
from planner.prediction import PlanFile
from planner.request import Request
from planner.space.beside import Questions
from profiles.artifacts import write
from profiles.errors import TrainwrightError
from profiles.models.operators import PHASES, evaluate
from profiles.models.profile import ModelProfile, WorkloadSpec
from profiles.tracing.task_trace import trace_task
from profiles.workloads.task import Task
from profiles.workloads.task_loading import load_task
from tests.matrix.by_torch import measured

# Samples of the step that torch is asked about: as many as no run has that is traced.
SAMPLES = 6
DEVICES, DEVICE, BATCH, PRECISION = 8, "a100-sxm-80gb", 64, "fp32"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one model: how many layers of how many kinds, ours over torch's numbers, plans, or why not.

    From `data` on it is executed on two ranks: the largest difference from one process, or why not.
    """

    name: str
    task: str = ""
    parameters: str = ""
    layers: str = ""
    kinds: str = ""
    sizes: str = ""
    flops_over_torch: str = ""
    saved_over_real: str = ""
    plans: str = ""
    best_plan: str = ""
    refused: str = ""
    data: str = ""
    zero1: str = ""
    zero2: str = ""
    zero3: str = ""
    recompute: str = ""
    tensor: str = ""
    pipeline: str = ""


def totals(profile: ModelProfile, samples: int, size: int) -> tuple[float, float]:
    """FLOPs of a step and bytes that it saves, as the profile has them."""
    at = (samples, size, 1)
    layers = list(profile.each_layer("fp32"))
    flops = sum(float(evaluate(layer.flops(phase), *at)) for layer in layers for phase in PHASES)
    return flops, sum(float(evaluate(layer.saved_bytes, *at)) for layer in layers)


def traced(spec: WorkloadSpec, size: int, trusted: Sequence[str] = ()) -> tuple[Task, ModelProfile]:
    """The task of a model and its trace in fp32."""
    task = load_task(spec, trusted, size=size)
    return task, trace_task(spec, task, (PRECISION,))


def against_torch(task: Task, profile: ModelProfile) -> tuple[float, float]:
    """Our FLOPs over torch's, and our saved bytes over those of a real run."""
    ours, theirs = totals(profile, SAMPLES, task.size), measured(task, SAMPLES, task.size)
    return ours[0] / theirs[0], ours[1] / theirs[1]


def planned(profile: ModelProfile, trusted: Sequence[str] = ()) -> PlanFile:
    """Plans of a traced model for eight devices, whose dropout may not be that which it was traced with."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        write(path, "model-profile", profile)
        request = Request(
            model=str(path),
            num_devices=DEVICES,
            device=DEVICE,
            global_batches=(BATCH,),
            precisions=(PRECISION,),
            trusted=tuple(trusted),
        )
        return ask(request, Questions())


def tried(spec: WorkloadSpec, size: int, trusted: Sequence[str] = ()) -> Row:
    """A model tried in every way; what is refused, or ends in any other error, is said in its row."""
    try:
        task, profile = traced(spec, size, trusted)
        flops, saved = against_torch(task, profile)
        plans = planned(profile, trusted)
    except TrainwrightError as error:
        return Row(name=spec.name, refused=str(error))
    except Exception as error:
        return Row(name=spec.name, refused=f"{type(error).__name__}: {error}")
    return Row(
        name=spec.name,
        task=task.name,
        parameters=str(profile.num_parameters),
        layers=str(profile.num_layers),
        kinds=str(len(set(profile.structure))),
        sizes="one" if profile.is_fixed else "any",
        flops_over_torch=f"{flops:.6f}",
        saved_over_real=f"{saved:.4f}",
        plans=str(len(plans.candidates)),
        best_plan=plans.candidates[0].plan.id,
    )
