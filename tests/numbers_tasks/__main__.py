"""`python -m tests.numbers_tasks [FOLDER] [NAMES] [--record]`: 30 models of all kinds, predicted and run here.

Traces them, profiles the machine with them, predicts data parallelism and ZeRO stage 3 on two ranks, and only then runs
these plans in turns, all of them in several rounds. Prints the errors of step times and of peak memory, and writes them
as CSV into FOLDER ("out" unless given); with --record beside the tests as well. About a quarter of an hour. What is in
FOLDER already, traces and the machine's profile, is taken as it is. Run by `make numbers-tasks`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from planner.prediction import PlanFile
from profiles import artifacts
from profiles.machines.load import causes, look_before
from profiles.machines.profile import MachineProfile
from profiles.models.profile import ModelProfile
from profiles.ranks.launcher import launch
from profiles.ranks.rank import Report
from tests.numbers_tasks.models import MODELS, OWN, Model
from tests.numbers_tasks.predict import PRECISION, RANKS, STAGES, predicted
from tests.numbers_tasks.table import Row, show, write
from tests.numbers_tasks.trace import trace

# Every round builds each model anew; of each plan it steps so many blocks of so many steps, in turns with the other.
ROUNDS, TURNS, STEPS = 2, 2, 3
RECORD = Path(__file__).parent.parent / "golden" / "numbers_tasks.csv"


def traced(models: Sequence[Model], folder: Path) -> dict[str, ModelProfile]:
    """The profiles of the models, as many at a time as there are ranks."""
    with ProcessPoolExecutor(RANKS, mp_context=get_context("spawn")) as pool:
        paths = list(pool.map(trace, [model.name for model in models], [folder] * len(models)))
    return {
        model.name: artifacts.read(path, "model-profile", ModelProfile)
        for model, path in zip(models, paths, strict=True)
    }


def measured_machine(models: Sequence[Model], folder: Path) -> MachineProfile:
    """The machine's profile with the layers of the models, measured where it is not there."""
    path = folder / "machine.json"
    if not path.exists():
        named = [word for model in models for word in ("--model", str(folder / f"{model.name}.model.json"))]
        # Those of the plans, and half of them.
        sizes = sorted({model.batch // RANKS // share for model in models for share in (1, 2)})
        batches = ",".join(str(size) for size in sizes if size)
        arguments = ("--gpus", str(RANKS), *named, "--micro-batches", batches, "--precision", PRECISION)
        command = (sys.executable, "-m", "profiles", "machine", *arguments, "--trust-module", OWN, "-o", str(path))
        subprocess.run(command, check=True, env=os.environ | {"TRAINWRIGHT_HOME": str(folder)})
    return artifacts.read(path, "machine-profile", MachineProfile)


def run(files: dict[str, PlanFile], folder: Path) -> list[dict[str, Any]]:
    """What was measured of every plan in every round; noted in a file as it comes."""
    found: list[dict[str, Any]] = []

    def note(said: Report) -> None:
        found.extend(said.values.get("measured", ()))
        (folder / "measured.json").write_text(json.dumps(found), encoding="utf-8")
        print(f"\r{said.fraction:5.0%} {said.text:20s}", end="", file=sys.stderr, flush=True)

    plain = [json.loads(artifacts.dump("plan", file)) for file in files.values()]
    for own in plain:
        del own["artifact"], own["schema"]
    payload = {"files": plain * ROUNDS, "turns": TURNS, "steps": STEPS, "trusted": [OWN]}
    launch("tests.numbers_tasks.ranks:run", payload, RANKS, "cpu", on_report=note)
    print(file=sys.stderr)
    return found


def rows(
    models: Sequence[Model],
    files: dict[str, PlanFile],
    untimed: dict[str, PlanFile],
    found: Sequence[dict[str, Any]],
    machine: MachineProfile,
) -> Iterator[Row]:
    """A row for each plan; `untimed` are files without what was timed of the models' layers."""
    for model in models:
        others = untimed[model.name].candidates
        for name, candidate, other in zip(STAGES, files[model.name].candidates, others, strict=True):
            file, own = files[model.name], [one for one in found if one["model"] == files[model.name].model_name]
            own = [one for one in own if one["plan"] == candidate.plan.id]
            if not own:
                continue
            seconds = [second for one in own for second in one["seconds"]]
            low, middle, high = statistics.quantiles(seconds, n=4)
            yield Row(
                model=model.name,
                kind=model.kind,
                parameters=file.num_parameters,
                plan=name,
                batch=model.batch,
                size=file.sequence_length,
                predicted_seconds=candidate.prediction.step_seconds,
                low_seconds=candidate.prediction.low_seconds,
                high_seconds=candidate.prediction.high_seconds,
                kernels_seconds=other.prediction.step_seconds,
                seconds=middle,
                spread=(high - low) / 2 / middle,
                predicted_bytes=candidate.prediction.peak_bytes,
                peak_bytes=max(peak for one in own for peak in one["peak_bytes"]),
                lost=max(one["load"].get("waited_fraction") or 0.0 for one in own),
                parts={part: value for part, value in candidate.prediction.seconds.items() if value},
                measured_parts=own[-1]["parts"],
                device=machine.device_name,
                software=machine.fingerprint.torch if machine.fingerprint else "",
                profiled=machine.created,
            )


def main(arguments: Sequence[str]) -> None:
    """Trace, profile, predict, run, print, write."""
    words = [word for word in arguments if not word.startswith("-")]
    folder, names = Path(words[0] if words else "out") / "numbers-tasks", words[1:]
    folder.mkdir(parents=True, exist_ok=True)
    models = [model for model in MODELS if not names or model.name in names]
    profiles = traced(models, folder)
    machine = measured_machine(models, folder)
    print(f"{RANKS} ranks on {machine.device_name}, profiled {machine.created}")
    if machine.load is not None and machine.load.is_busy:
        print(f"it was busy while it was profiled ({causes(machine.load)}): profile it again when it is quiet")
    files, untimed = (
        {model.name: predicted(known, profiles[model.name], model.batch) for model in models}
        for known in (machine, replace(machine, layer_timings=()))
    )
    for model in models:
        path = folder / f"{model.name}.plan.json"
        artifacts.write(path, "plan", files[model.name])
    _, notes = look_before(RANKS)
    print(*notes, sep="\n")
    found = list(rows(models, files, untimed, run(files, folder), machine))
    show(found)
    for path in (folder / "numbers_tasks.csv", *([RECORD] if "--record" in arguments else [])):
        write(path, found)
        print(f"written to {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
