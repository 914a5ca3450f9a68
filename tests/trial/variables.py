"""What a case is run with: the variables of its environment, and where the commands are."""

from __future__ import annotations

import os
from pathlib import Path

from tests.trial.case import Case

ROOT = Path(__file__).parents[2]
PACKAGES = {"profile": "profiles", "plan": "planner", "execute": "executor", "compare": "reports"}
# What would make this process one rank of a job.
JOB_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID",
    "SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_JOB_ID",
)  # fmt: skip
# How many times longer than it computes a case may take on a busy machine.
IDLE = 10


def variables(case: Case, folder: Path) -> dict[str, str]:
    """The environment of a case: that of this process without a job's, a home of its own, and the case's."""
    own = {name: value for name, value in os.environ.items() if name not in JOB_VARIABLES}
    return own | {"TRAINWRIGHT_HOME": str(folder / "home"), "PYTHONDONTWRITEBYTECODE": "1"} | dict(case.environment)
