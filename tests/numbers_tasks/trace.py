"""Traces the models, each in a process of its own: what a pool of them is given must not stand in the main module."""

from __future__ import annotations

from pathlib import Path

from profiles import artifacts
from profiles.models.profile import WorkloadSpec
from profiles.tracing.task_trace import trace_task
from profiles.workloads.task_loading import load_task
from tests.numbers_tasks.models import MODELS, OWN, Model
from tests.numbers_tasks.predict import PRECISION


def spec_of(model: Model) -> WorkloadSpec:
    """What is traced and trained."""
    if model.config:
        return WorkloadSpec(kind="transformers", name=model.name, config=model.config)
    return WorkloadSpec(kind="module", name=model.name, factory=model.factory)


def trace(name: str, folder: Path) -> Path:
    """The model's profile in a file, traced where it is not there."""
    path = folder / f"{name}.model.json"
    if not path.exists():
        model = next(model for model in MODELS if model.name == name)
        spec = spec_of(model)
        task = load_task(spec, (OWN,), size=model.size)
        artifacts.write(path, "model-profile", trace_task(spec, task, (PRECISION,)))
    return path
