"""How many configurations of Megatron's functional tests are read and priced: `python -m tests.stacks.megatron_reads`.

MEGATRON_FOLDER is a checkout of Megatron-LM. Each configuration is priced as a job of the search and as a row of a
table of runs; what is neither is counted by reason. Where MEGATRON_PYTHON is a Python that can import it, Megatron is
given the arguments, and the log that it then prints has to tell of the same job.
"""

import os
import sys
from collections import Counter
from pathlib import Path

import yaml

from planner.published.reading import read_jobs
from planner.request import Request
from planner.stacks.handover import Given, StackJob
from planner.stacks.judge import priced
from planner.stacks.registry import read
from planner.stacks.rows import cells_of
from profiles.errors import TrainwrightError
from tests.stacks.megatron import Megatron

DEVICE = "b200-sxm"


def _as_job(job: StackJob) -> str:
    """Why the search has no price of the job, "" where it has."""
    try:
        took = priced(job, Request(model="", num_devices=job.num_devices, device=DEVICE))
    except TrainwrightError as error:
        return str(error)
    return "" if took.prediction.step_seconds > 0 else "no time"


def _as_row(job: StackJob, path: Path) -> str:
    """Why a table of runs has no price of the job, "" where it has."""
    try:
        reading = read_jobs([cells_of(job, path) | {"gpu_type": DEVICE}])
    except TrainwrightError as error:
        return str(error)
    return reading.refused.get(0, "")


def _as_log(job: StackJob, path: Path, megatron: Megatron) -> str:
    """How the job of the log that Megatron prints differs, "" where it is the same."""
    told = yaml.safe_load(path.read_text())
    words: list[str] = []
    for name, value in told["MODEL_ARGS"].items():
        if value is not False:
            words += [name, *([] if value is True else str(value).strip("[]").split())]
    queues = "8" if {"--use-megatron-fsdp", "--use-torch-fsdp2"} & set(words) else "1"
    own = {name: str(value) for name, value in (told.get("ENV_VARS") or {}).items()}
    environment = own | {"CUDA_DEVICE_MAX_CONNECTIONS": queues}
    error, shown = megatron.ask(words, environment, job.num_devices, only_arguments=True)
    if error:
        return f"Megatron refuses it: {error}"
    again = read(Path("a.log"), shown, Given())
    for name in ("plan", "workload", "attention_kernel", "stack", "sequence_length", "global_batch_size", "cells"):
        if getattr(job, name) != getattr(again, name):
            return f"{name} differs"
    return ""


def main() -> int:
    """Read and price all of them, and say what came of it."""
    megatron = Megatron() if "MEGATRON_PYTHON" in os.environ else None
    folder = Path(os.environ["MEGATRON_FOLDER"]) / "tests" / "functional_tests" / "test_cases"
    paths = sorted(folder.rglob("model_config.yaml"))
    outcomes = {name: Counter[str]() for name in ("read", "priced as a job", "priced as a row", "priced", "as its log")}
    unread: Counter[str] = Counter()
    for path in paths:
        try:
            job = read(path, path.read_text(), Given())
        except TrainwrightError as error:
            outcomes["read"][str(error).replace(str(path), "")[:140]] += 1
            continue
        outcomes["read"][""] += 1
        unread.update(text.partition("--")[2].split(" ")[0] for text in job.unread)
        answers = _as_job(job), _as_row(job, path)
        outcomes["priced as a job"][answers[0][:140]] += 1
        outcomes["priced as a row"][answers[1][:140]] += 1
        outcomes["priced"]["" if "" in answers else answers[0][:140]] += 1
        if megatron is not None:
            outcomes["as its log"][_as_log(job, path, megatron)[:140]] += 1
    for name, counts in outcomes.items():
        print(f"{name}: {counts.pop('', 0)} of {len(paths)}")
        for reason, count in counts.most_common(int(os.environ.get("SHOWN", "8"))):
            print(f"  {count:4d} {reason}")
    print("not understood:", dict(unread.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
