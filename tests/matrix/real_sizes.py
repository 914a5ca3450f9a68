"""`python -m tests.matrix.real_sizes`: profile and plan published models, and write the table beside the recorded ones.

Models that are named, or all; rows of others stay as they are. Each command is a process of its own, whose processor
time and memory are noted: other processes make none of them longer. FLOPs are held to torch's counter, which is given
the whole module under fake tensors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from planner.prediction import PlanFile
from profiles import artifacts
from profiles.models.profile import ModelProfile
from profiles.workloads.task_loading import load_task, wants_task
from tests.matrix.by_torch import counted
from tests.matrix.real_configs import REAL, Real
from tests.matrix.rows import read_rows, write_rows
from tests.matrix.ways import SAMPLES, totals

TABLE = Path(__file__).parent.parent / "golden" / "real_sizes.csv"
PLAN = ("--gpus", "8", "--device", "a100-sxm-80gb", "--global-batch", "256")
GIB = 2**20  # in KiB, as systems say how much a process had


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one model: its parameters in millions, seconds of a processor, plans, or why there are none."""

    name: str
    parameters: str = ""
    published: str = ""
    profile_seconds: str = ""
    profile_gib: str = ""
    again_seconds: str = ""
    flops_over_torch: str = ""
    plan_seconds: str = ""
    best_plan: str = ""
    mfu: str = ""
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Done:
    """A command that ended: its code, seconds of a processor, memory in GiB, and the last line of what it said."""

    code: int
    seconds: float
    gib: float
    last: str


def run(command: Sequence[str], folder: Path) -> Done:
    """Run one of the commands, what it keeps in a folder of its own."""
    environment = os.environ | {"TRAINWRIGHT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    said = folder / "said.txt"
    with said.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=stream, stderr=stream, env=environment)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = said.read_text().strip().splitlines()
    seconds = used.ru_utime + used.ru_stime
    return Done(code=process.returncode, seconds=seconds, gib=used.ru_maxrss / GIB, last=lines[-1] if lines else "")


def tried(real: Real, folder: Path) -> Row:
    """One model profiled twice and planned for; what is refused is said in its row."""
    config, profile_file, plan_file = (folder / f"{real.name}{end}" for end in ("", ".profile.json", ".plan.json"))
    config.mkdir()
    (config / "config.json").write_text(json.dumps(real.config))
    command = ("profiles", "model", str(config), "-o", str(profile_file))
    done = run(command, folder)
    row = {
        "published": f"{real.published:g}",
        "profile_seconds": f"{done.seconds:.1f}",
        "profile_gib": f"{done.gib:.2f}",
    }
    if done.code:
        return Row(name=real.name, **row, refused=done.last)
    profile = artifacts.read(profile_file, "model-profile", ModelProfile)
    row |= {
        "parameters": f"{profile.num_parameters / 1e6:.1f}",
        "again_seconds": f"{run(command, folder).seconds:.1f}",
        "flops_over_torch": flops_over_torch(real, profile),
    }
    planned = run(("planner", "--model", str(config), *PLAN, "-o", str(plan_file)), folder)
    row["plan_seconds"] = f"{planned.seconds:.1f}"
    if planned.code:
        return Row(name=real.name, **row, refused=planned.last)
    best = artifacts.read(plan_file, "plan", PlanFile).candidates[0]
    return Row(name=real.name, **row, best_plan=best.plan.id, mfu=f"{best.prediction.mfu:.3f}")


def flops_over_torch(real: Real, profile: ModelProfile) -> str:
    """Our FLOPs over torch's; "" of known families, of mixtures, and where modules read their own values."""
    # Every expert of every layer would run, which takes minutes.
    if not wants_task(real.spec) or any("experts" in name for name in real.config):
        return ""
    task = load_task(real.spec)
    try:
        theirs = counted(task, SAMPLES, task.size)
    except Exception:  # whatever libraries raise where a fake tensor has no value
        return ""
    return f"{totals(profile, SAMPLES, task.size)[0] / theirs:.6f}"


def recorded() -> dict[str, Row]:
    """The rows of the table as it is."""
    return read_rows(TABLE, Row)


def write(rows: dict[str, Row]) -> None:
    """Write the table, its rows in the order of the models."""
    write_rows(TABLE, Row, (rows[real.name] for real in REAL if real.name in rows))


def main(names: list[str]) -> int:
    """Try the models, write each row as it comes, and count those that are refused."""
    rows = recorded()
    for real in REAL:
        if names and real.name not in names:
            continue
        with TemporaryDirectory() as folder:
            rows[real.name] = tried(real, Path(folder))
        print(*asdict(rows[real.name]).values(), sep="  ", flush=True)
        write(rows)
    refused = [row.name for row in rows.values() if row.refused]
    print(f"{len(rows)} models, {len(refused)} refused: {', '.join(refused) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
