"""The run file: measurements beside the predictions made before them, and where and how it took place."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from executor.engines import engine
from executor.run.measurement import Environment, Measurement, PlanRun, RunFile
from executor.run.prepare import Job, is_baseline
from profiles import artifacts
from profiles.machines.load import MachineLoad
from profiles.machines.profile import Fingerprint
from profiles.version import version as own_version


def run_file(job: Job, measurements: list[dict[str, Any]]) -> RunFile:
    """The run file of a job from what its rank 0 gave: one set of fields per plan and engine, in the order they ran."""
    runs = []
    chosen = [(index, engine(name)) for index in job.order.chosen for name in job.order.engines]
    for (index, used), fields in zip(chosen, measurements, strict=True):
        candidate = job.file.candidates[index]
        runs.append(
            PlanRun(
                rank=candidate.rank,
                plan=candidate.plan,
                prediction=candidate.prediction,
                measurement=artifacts.validate(fields, Measurement, "the measurement"),
                is_baseline=is_baseline(job.file, candidate.plan),
                engine=used.name,
                engine_version=used.version,
            )
        )
    return RunFile(
        model_name=job.file.model_name,
        workload=job.file.workload,
        num_parameters=job.file.num_parameters,
        machine_name=job.file.machine_name,
        machine_fingerprint=job.file.machine_fingerprint,
        global_batch_size=job.file.global_batch_size,
        sequence_length=job.file.sequence_length,
        seed=job.order.seed,
        runs=tuple(runs),
        environment=environment(
            job.here,
            job.file.num_devices,
            job.started,
            job.oversubscribed,
            job.data_name,
            job.load_before,
        ),
        notes=job.notes,
        learned=job.file.learned,
        size_unit=job.file.size_unit,
        stack=job.file.stack,
    )


def environment(
    here: Fingerprint,
    num_devices: int,
    started: str,
    oversubscribed: bool,
    data: str,
    load_before: MachineLoad | None = None,
) -> Environment:
    """Where and how a run took place: now, but for what is given. `here` is the machine as it was before ranks."""
    return Environment(
        device=here.device,
        num_devices=num_devices,
        num_cores=here.num_cores,
        torch=version("torch"),
        python=platform.python_version(),
        backend=here.backend,
        commit=_commit(),
        started=started,
        fingerprint=here.digest,
        oversubscribed=oversubscribed,
        command=shlex.join(["execute", *sys.argv[1:]]),
        data=data,
        load_before=load_before,
        trainwright=own_version(),
    )


def _commit() -> str:
    """The commit of this source tree; "" where it is not a checkout."""
    source = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
