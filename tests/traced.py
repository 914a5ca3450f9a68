"""Profiles of tasks' own modules, each traced once for all test files and workers: it takes seconds."""

import functools
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from profiles import artifacts
from profiles.models.profile import ModelProfile, WorkloadSpec
from profiles.tracing.task_trace import trace_task
from profiles.workloads.task import Task
from tests.environment import TRACES_VARIABLE


def profile_of(spec: WorkloadSpec, task: Task) -> ModelProfile:
    """The profile of a task in fp32."""
    key = json.dumps([asdict(spec), task.size], sort_keys=True)
    path = Path(os.environ[TRACES_VARIABLE], hashlib.sha256(key.encode()).hexdigest()).with_suffix(".json")
    if not path.exists():
        artifacts.write(path, "model-profile", trace_task(spec, task, ("fp32",)))
    return _read(path)


@functools.cache
def _read(path: Path) -> ModelProfile:
    return artifacts.read(path, "model-profile", ModelProfile)
