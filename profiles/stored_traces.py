"""Traces that were made before, kept beside the profile of this machine: the same configuration is traced once.

A trace is found again by all that it depends on: the configuration, the task, the kind of device, the precisions, the
libraries that build and run the module, the kind of processor, and the sources of this program. What cannot be kept, or
read, or is of something else, is traced anew; a user's own module always is, for its code may have changed. Torch-free.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from profiles.artifacts import read, write
from profiles.errors import TrainwrightError
from profiles.models.profile import ModelProfile, WorkloadSpec

# How many are kept; the oldest make room.
MOST = 64
SOURCES = Path(__file__).parent
# Some configurations of transformers name a backbone of timm.
LIBRARIES = ("torch", "transformers", "timm")


def kept_trace(home: Path, spec: WorkloadSpec, device_kind: str, precisions: Sequence[str]) -> ModelProfile | None:
    """The trace of a workload that is kept under `home`, where there is one."""
    if not _is_kept(spec):
        return None
    try:
        profile = read(_path(home, spec, device_kind, precisions), "model-profile", ModelProfile)
        profile.check()
    except TrainwrightError:
        return None
    # Its name alone says what a file is of: one that was copied there may say otherwise.
    is_asked = replace(profile.workload, task=spec.task) == spec and set(precisions) <= profile.layers.keys()
    return profile if is_asked else None


def keep_trace(home: Path, spec: WorkloadSpec, device_kind: str, profile: ModelProfile) -> None:
    """Keep the trace of a workload under `home`, where that is possible."""
    if not _is_kept(spec):
        return
    with contextlib.suppress(TrainwrightError, OSError):
        path = _path(home, spec, device_kind, tuple(profile.layers))
        write(path, "model-profile", profile)
        kept = sorted(path.parent.glob("*.json"), key=lambda own: own.stat().st_mtime)
        for old in kept[:-MOST]:
            old.unlink()


def _is_kept(spec: WorkloadSpec) -> bool:
    return spec.kind == "transformers" and not spec.weights


def _path(home: Path, spec: WorkloadSpec, device_kind: str, precisions: Sequence[str]) -> Path:
    said = json.dumps([asdict(spec), device_kind, list(precisions), _made_by()], sort_keys=True)
    return home / "traces" / f"{hashlib.sha256(said.encode()).hexdigest()[:24]}.json"


def _made_by() -> list[str]:
    """The libraries and the kind of processor that a trace is made with, and the sources of this program."""
    sources = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*.py")):
        sources.update(path.read_bytes())
    return [*map(_version, LIBRARIES), platform.machine(), sources.hexdigest()]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"
