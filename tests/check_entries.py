"""What the ranks of the tests of the check run: plans, with a fault in them or none."""

import gc
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from executor.mesh import Meshes
from executor.run.batches import Data, default_text, load_data, load_text
from executor.run.check_subject import subject_of
from executor.run.check_training import TrainingCheck
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.ranks.rank import join_group
from profiles.workloads.loading import load_workload
from profiles.workloads.workload import Workload
from tests import check_faults
from tests.check_plans import MODELS
from tests.plan_builders import SEED, SEQUENCE
from tests.task_entries import subject as task_subject

# What names of models begin with that are tasks of tests/matrix.
TASK = "task "


def material(name: str) -> tuple[Workload, Data]:
    """A model to check a plan of, and its samples."""
    if name.startswith(TASK):
        return task_subject(name.removeprefix(TASK))
    workload = load_workload(MODELS[name])
    if workload.answers_once:
        return workload, load_data("", workload, workload.max_sequence_length, SEED)
    return workload, load_text(default_text(), SEQUENCE, SEED)


def check_all(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Per case, the verdict of its check, or what went wrong."""
    results = []
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        for number, (name, fields, fault) in enumerate(payload["cases"]):
            plan = validate(fields, Plan, "the test")
            workload, data = material(name)
            folder = Path(payload["folder"]) if fault in check_faults.NEEDS_A_FOLDER or fault == "resumed" else None
            started = time.process_time()
            with check_faults.injected("" if fault == "resumed" else fault):
                try:
                    subject = subject_of(plan, workload, data)
                    check = TrainingCheck(subject, rank, meshes, f"check {number}", folder).run()
                    found = asdict(check)
                except Exception as error:
                    # All ranks fail alike, and the next case may not.
                    found = {"status": "crashed", "reason": "".join(traceback.format_exception(error)[-6:])}
            seconds = time.process_time() - started
            results.append({"case": f"{name} {plan.id}", "fault": fault, "seconds": seconds, **found})
            gc.collect()
    return results
