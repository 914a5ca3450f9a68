"""`make gpu`: everything worth asking one borrowed GPU in twelve minutes, written under one folder.

The tests marked `gpu`, the machine's profile, then a model of a billion parameters under choices of precision,
micro-batch, recomputation, compilation and attention kernel, each predicted and run through plan files and `execute`.
It keeps a budget of time: what no longer fits is skipped and named, and a file is whole or not there. Started again
on the same folder it goes on with what is missing. With --dry-run, a tiny model on a CPU goes the same way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from executor.run.measurement import PlanRun, RunFile
from planner.plans import Plan
from planner.prediction import Candidate
from planner.space.explore import Space, explore
from planner.space.files import plan_file, planned_for
from planner.space.layouts import Options
from planner.space.measured_setting import measured_setting
from profiles import artifacts
from profiles.files import write_text
from profiles.library import load_model
from profiles.machines.fingerprint import current_device_kind
from profiles.machines.profile import MachineProfile
from profiles.ranks.cuda_setup import ATTENTION_VARIABLE
from profiles.ranks.devices import gpu_settings
from profiles.workloads.precision import unavailable
from tests.plan_finder import predict

BUDGET_SECONDS, RESERVE_SECONDS = 720.0, 15.0
TESTS = "tests/test_gpu.py"
# What a step of the session is thought to take before one has been seen: tests, profile, start of ranks, a plan.
TESTS_SECONDS, PROFILE_SECONDS, START_SECONDS, PLAN_SECONDS = 75.0, 180.0, 30.0, 25.0
# So many plans share the start of their ranks, and are lost together where time runs out.
TOGETHER = 3
OPTIONS = Options(offload=("none",))
TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is trained, and where."""

    kind: str
    model: str
    batch: int
    sequence: int
    steps: int
    num_layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A plan, and the attention kernel it is run with: torch's own choice where none is named."""

    plan: Plan
    attention: str = ""

    @property
    def name(self) -> str:
        return f"{self.plan.id} attention-{self.attention}" if self.attention else self.plan.id

    @property
    def key(self) -> str:
        """What choices that run beside each other have in common."""
        words = (self.plan.precision, "compiled" if self.plan.compiled else "", self.attention)
        return "-".join(filter(None, words))


@dataclass(slots=True)
class Session:
    """A folder, its time, and what was left out of it."""

    folder: Path
    subject: Subject
    budget: float
    begun: float = field(default_factory=time.monotonic)
    plan_seconds: float = PLAN_SECONDS
    skipped: list[str] = field(default_factory=list)
    spaces: dict[tuple[str, bool], Space] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds until the last files are to be written."""
        return self.budget - RESERVE_SECONDS - (time.monotonic() - self.begun)

    def run(self, what: str, seconds: float, *arguments: str, **environment: str) -> bool:
        """Run a module where `seconds` are left for it, its log beside what it writes; whether it succeeded."""
        if self.left < seconds:
            self.skip(what, f"{self.left:.0f} s were left of {seconds:.0f} s")
            return False
        begun = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", *arguments], env={**os.environ, **environment}, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(timeout=self.left)
            except subprocess.TimeoutExpired:
                # The launcher ends its ranks on SIGTERM; what is left of the group after that goes with it.
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    output, _ = process.communicate(timeout=RESERVE_SECONDS / 3)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    output, _ = process.communicate()
                self.skip(what, "the time was over")
        write_text(self.folder / f"{re.sub('[^A-Za-z0-9]+', '-', what)}.log", output)
        print(f"{what}: exit {process.returncode} after {time.monotonic() - begun:.0f} s, {self.left:.0f} s left")
        if process.returncode:
            print("\n".join(output.strip().splitlines()[-3:]))
        return process.returncode == 0

    def skip(self, what: str, why: str) -> None:
        """Note what was not done."""
        self.skipped.append(f"{what}: {why}")


def choices(subject: Subject) -> list[Choice]:
    """What is tried, the most telling first."""
    batch, part = subject.batch, subject.num_layers // 2

    def plan(micro: int, precision: str = "bf16", recompute: str = "none", **more: object) -> Plan:
        return Plan(
            micro_batch_size=micro, num_microbatches=batch // micro, precision=precision, recompute=recompute, **more
        )

    half = batch // 2
    plans = [
        plan(half), plan(batch), plan(half, recompute="full"), plan(1),
        plan(half, recompute="selective"), plan(half, "tf32"), plan(half, "fp32"),
        plan(half, compiled=True), plan(batch, compiled=True), plan(batch // 4),
        plan(batch, recompute="full"), plan(half, recompute="full", recompute_layers=(part,)),
        plan(batch, "tf32"),
        plan(half, "tf32", recompute="full"), plan(1, recompute="full"), plan(half, "fp8"), plan(batch, "fp8"),
        plan(half, recompute="full", compiled=True),
    ]  # fmt: skip
    found = [Choice(plan=one) for one in plans]
    found += [Choice(plan=plan(half), attention=kernel) for kernel in ("efficient", "cudnn", "math")]
    return list(dict.fromkeys(found))


def groups(wanted: Sequence[Choice]) -> list[list[Choice]]:
    """Choices that run beside each other, in the order of the first of each."""
    keys = list(dict.fromkeys(choice.key for choice in wanted))
    of_keys = [[choice for choice in wanted if choice.key == key] for key in keys]
    cut = [[own[start : start + TOGETHER] for start in range(0, len(own), TOGETHER)] for own in of_keys]
    # The second group of a key comes after the first of all others.
    rows = itertools.zip_longest(*cut)
    return [group for row in rows for group in row if group]


def space_of(session: Session, plan: Plan, machine: MachineProfile) -> Space:
    """The plans that one is priced among; worked out once for those of one precision."""
    subject, key = session.subject, (plan.precision, plan.compiled)
    if key not in session.spaces:
        model = load_model(subject.model, (plan.precision,))
        at = measured_setting(machine, model, 1, subject.batch, subject.sequence, plan.precision)
        session.spaces[key] = explore(replace(at, compiled=plan.compiled), OPTIONS)
    return session.spaces[key]


def candidates(session: Session, group: Sequence[Choice], machine: MachineProfile) -> list[tuple[Choice, Candidate]]:
    """The choices with what is predicted of them; those that cannot be are named and left out."""
    found = []
    for choice in group:
        plan = choice.plan
        reason = unavailable(plan.precision, session.subject.kind)
        if not reason and plan.precision not in machine.peak_flops_per_second:
            reason = f"the machine was not profiled in {plan.precision}"
        if not reason:
            try:
                prediction = predict(space_of(session, plan, machine), plan)
            except AssertionError as error:
                reason = str(error)
            else:
                reason = "" if prediction.fits else f"{prediction.peak_bytes / 2**30:.3g} GiB do not fit"
        if reason:
            session.skip(choice.name, reason)
            continue
        own = Candidate(rank=len(found) + 1, plan=plan, prediction=prediction, verdict="", executable=True)
        found.append((choice, own))
    return found


def done(folder: Path) -> dict[tuple[str, str], PlanRun]:
    """What was run before, by attention kernel and plan."""
    found = {}
    for path in sorted(folder.glob("run-*.json")):
        attention = path.stem.rpartition("attention-")[2] if "attention-" in path.stem else ""
        for own in artifacts.read(path, "run", RunFile).runs:
            found[attention, own.plan.id] = own
    return found


def run_group(session: Session, group: Sequence[Choice], machine: MachineProfile) -> None:
    """Predict and run what of the group was not yet; where ranks fail, each by itself."""
    before = done(session.folder)
    missing = [choice for choice in group if (choice.attention, choice.plan.id) not in before]
    priced = candidates(session, missing, machine)
    if not priced:
        return
    subject, first = session.subject, priced[0][0]
    name = "-".join(filter(None, (re.sub("[^A-Za-z0-9]+", "-", first.plan.id), str(len(priced)))))
    name += f"-attention-{first.attention}" if first.attention else ""
    plan, result = (session.folder / f"{kind}-{name}.json" for kind in ("plan", "run"))
    target = planned_for(space_of(session, first.plan, machine).at)
    own = [candidate for _, candidate in priced]
    artifacts.write(plan, "plan", plan_file(target, own, num_legal=len(own), rejected={}, notes=()))
    names = ", ".join(choice.name for choice, _ in priced)
    begun = time.monotonic()
    is_done = session.run(
        names, START_SECONDS + session.plan_seconds * len(own), "executor", str(plan), "--top", str(len(own)),
        "--steps", str(subject.steps), "-o", str(result), **{ATTENTION_VARIABLE: first.attention},
    )  # fmt: skip
    if is_done:
        session.plan_seconds = 1.2 * (time.monotonic() - begun - START_SECONDS / 2) / len(own)
    elif not result.exists():
        plan.unlink()
        if len(priced) > 1 and session.left > 0:
            for choice, _ in priced:
                run_group(session, [choice], machine)
        elif session.left > 0:
            session.skip(first.name, "failed, its log says why")


def table(session: Session) -> str:
    """Predicted beside measured, and what was left out."""
    lines = [f"{'choice':52s}  predicted   measured   error GiB predicted allocated reserved in use attention  check"]
    errors, of_memory = [], []
    for (attention, name), own in done(session.folder).items():
        measured, gib = own.measurement, 2.0**30
        seconds = statistics.median(measured.step_seconds)
        errors.append(own.prediction.step_seconds / seconds - 1)
        peak = max(measured.peak_bytes)
        of_memory.append(own.prediction.peak_bytes / peak - 1)
        reserved, used = (max(sizes, default=0.0) for sizes in (measured.reserved_bytes, measured.in_use_bytes))
        title = f"{name} attention-{attention}" if attention else name
        lines.append(
            f"{title:52s} {own.prediction.step_seconds * 1e3:7.1f} ms {seconds * 1e3:7.1f} ms {errors[-1]:+7.1%} "
            f"{own.prediction.peak_bytes / gib:13.2f} {peak / gib:9.2f} {reserved / gib:8.2f} {used / gib:6.2f} "
            f"{'+'.join(measured.attention) or '-':9s}  {measured.loss_check.status}"
        )
    if errors:
        lines.append(
            f"{len(errors)} choices: median |error| of a step {statistics.median(map(abs, errors)):.1%}, worst "
            f"{max(map(abs, errors)):.1%}; of allocated memory {statistics.median(map(abs, of_memory)):.1%}, worst "
            f"{max(map(abs, of_memory)):.1%}"
        )
    return "\n".join([*lines, *(f"skipped: {line}" for line in session.skipped), ""])


def write_versions(folder: Path, kind: str) -> None:
    """What the machine and its software are, as it says itself."""
    import torch

    said = {"python": platform.python_version(), "torch": torch.__version__, "device_kind": kind}
    if kind == "cuda":
        said |= {"device": torch.cuda.get_device_name(0), **gpu_settings(torch.device("cuda", 0))}
    write_text(folder / "versions.json", json.dumps(said, indent=1) + "\n")
    for name, options in (("nvidia-smi", ()), ("nvidia-smi-q", ("-q",))):
        if shutil.which("nvidia-smi"):
            told = subprocess.run(["nvidia-smi", *options], capture_output=True, text=True, check=False)
            write_text(folder / f"{name}.txt", told.stdout)


def subject_of(folder: Path, is_dry: bool) -> Subject:
    """A billion parameters on a GPU, or a tiny model on a CPU."""
    if not is_dry:
        return Subject(kind="cuda", model="llama-3.2-1b", batch=8, sequence=2048, steps=10, num_layers=16)
    path = folder / "model.json"
    write_text(path, json.dumps(TINY))
    return Subject(
        kind="cpu", model=str(path), batch=8, sequence=32, steps=3, num_layers=int(TINY["num_hidden_layers"])
    )


def precisions_of(kind: str) -> str:
    """What the machine is profiled in; a CPU's 8 bits are too slow to be worth it."""
    wanted = ("fp32", "tf32", "bf16", "fp8") if kind == "cuda" else ("fp32", "bf16")
    return ",".join(precision for precision in wanted if not unavailable(precision, kind))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what there is time for; 1 where tests failed or nothing was measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_session", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on a CPU")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, metavar="SECONDS")
    parser.add_argument("--only", default="", metavar="PATTERN", help="choices whose names this matches")
    asked = parser.parse_args(arguments)
    if not asked.dry_run and current_device_kind() != "cuda":
        parser.error("there is no GPU here: try it with --dry-run")
    asked.folder.mkdir(parents=True, exist_ok=True)
    if asked.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    subject = subject_of(asked.folder, asked.dry_run)
    session = Session(asked.folder, subject, asked.budget)
    write_versions(asked.folder, subject.kind)
    passed, machine = asked.folder / "tests-passed", asked.folder / "machine.json"
    if not passed.exists() and session.run("tests", TESTS_SECONDS, "pytest", "-m", "gpu", "-q", "-rs", TESTS):
        write_text(passed, "see tests.log\n")
    if not machine.exists():
        session.run(
            "profile", PROFILE_SECONDS, "profiles", "machine", "--gpus", "1", "--model", subject.model,
            "--sequence-length", str(subject.sequence), "--precision", precisions_of(subject.kind), "-o", str(machine),
        )  # fmt: skip
    wanted = [choice for choice in choices(subject) if re.search(asked.only, choice.name)]
    if machine.exists():
        profile = artifacts.read(machine, "machine-profile", MachineProfile)
        for group in groups(wanted):
            run_group(session, group, profile)
            write_text(asked.folder / "table.txt", table(session))
    else:
        session.skip(f"{len(wanted)} choices", "the machine was not profiled")
    write_text(asked.folder / "table.txt", table(session))
    print(table(session))
    return 0 if passed.exists() and done(asked.folder) else 1


if __name__ == "__main__":
    sys.exit(main())
