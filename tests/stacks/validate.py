"""Counts the plans that a stack's own checks accept: python -m tests.stacks.validate STACK [--count 200] [--seed 0].

Half of them are what the planner offers for the stack, half are layouts drawn within what it can run. Each is also read
back: the plan has to be the same, and so has the price of what is offered.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from planner.plans import Plan
from planner.prediction import Candidate, PlanFile
from planner.request import Request
from planner.stacks import registry
from planner.stacks.handover import Given, Handover
from planner.stacks.judge import priced
from tests.stacks.draws import both
from tests.stacks.validators import VALIDATORS, is_installed, validate, write

# The file that carries the plan, of those that are handed over.
MAIN = {
    "deepspeed": "ds_config.json", "accelerate": "accelerate.yaml", "torchtitan": "trainwright_plan.py",
    "horovod": "job.json", "tensorflow": "job.json",
}  # fmt: skip


# Of a plan that is written and read, by what its step and its memory may differ.
MOST_OFF = 0.005


def read_back(stack: str, out: Handover, plan: Plan, file: PlanFile) -> str:
    """How the plan that is read back differs, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        write(out, Path(folder))
        main = Path(folder) / MAIN[stack]
        job = registry.read(main, main.read_text(), Given())
    if job.unread:
        return f"not read: {job.unread[0]}"
    if job.global_batch_size != plan.global_batch_size or job.sequence_length != file.sequence_length:
        return "another batch or length"
    if job.workload.config != file.workload.config:
        return "another model"
    same = replace(plan, axis_order=job.plan.axis_order)
    return "" if job.plan == same else f"read as {job.plan.id}"


def price_again(stack: str, out: Handover, candidate: Candidate, file: PlanFile) -> str:
    """How far the price of the plan that is read back is off, where that is more than it may be, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        write(out, Path(folder))
        main = Path(folder) / MAIN[stack]
        job = registry.read(main, main.read_text(), Given())
    request = Request(model="", num_devices=0, device=file.machine_name, attention_kernel=file.attention_kernel)
    found, meant = priced(job, request).prediction, candidate.prediction
    off = max(abs(found.step_seconds / meant.step_seconds - 1), abs(found.peak_bytes / meant.peak_bytes - 1))
    return f"priced {off:.2%} off" if off > MOST_OFF else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", choices=sorted(VALIDATORS))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not is_installed(options.stack):
        print(f"{options.stack} is not installed here")
        return 1
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    accepted, wrong = Counter(), Counter()
    start = time.perf_counter()
    for file, plan, kind in both(options.stack, options.count, options.seed):
        try:
            candidate = next((each for each in file.candidates if each.plan == plan), file.candidates[0])
            out = registry.export(options.stack, file, candidate)
            why = validate(options.stack, out, plan, file) or read_back(options.stack, out, plan, file)
            if kind == "offered":
                why = why or price_again(options.stack, out, candidate, file)
        except Exception as error:
            why = f"not written: {type(error).__name__}: {error}"
        if why:
            wrong[why[:200]] += 1
            print(f"{kind} {file.model_name} {plan.id}: {why[:300]}", file=sys.stderr)
        else:
            accepted[kind] += 1
    total = sum(accepted.values())
    print(f"{options.stack}: {total} of {options.count} accepted and read back", dict(accepted), end=" ")
    print(f"{(time.perf_counter() - start) / options.count:.2f} s a plan")
    return int(total < options.count)


if __name__ == "__main__":
    sys.exit(main())
