"""A hand-over as a folder of files: what the software reads, how it is started, and the plan that it came from."""

from __future__ import annotations

import shlex
from pathlib import Path

from planner.prediction import Candidate, PlanFile
from planner.stacks.abilities import refusal_of
from planner.stacks.handover import Handover
from planner.stacks.registry import export
from profiles import artifacts
from profiles.errors import PlanError
from profiles.files import ensure_folder, write_text
from profiles.machines.stacks import load_stack, stack_names

LAUNCH = "launch.sh"


def hand_over(stack: str, file: PlanFile, candidate: Candidate, folder: Path) -> tuple[Handover, list[Path]]:
    """Write a plan down for other software into a folder; what was written.

    Raises: PlanError for a plan that the software cannot run; UnknownNameError; EnvironmentFailure.
    """
    if stack in stack_names():
        reason = refusal_of(load_stack(stack), candidate.plan, file)
        if reason:
            raise PlanError(
                f"plan {candidate.plan.id}: {reason}: plan again with --stack {stack}, which offers what it can run"
            )
    handover = export(stack, file, candidate)
    texts = dict(handover.files)
    texts.setdefault(LAUNCH, _launch(handover, candidate))
    texts["plan.json"] = artifacts.dump("plan", file)
    ensure_folder(folder)
    paths = []
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)
        paths.append(folder / name)
    return handover, paths


def _launch(handover: Handover, candidate: Candidate) -> str:
    """The launch line as a script, with the variables that it needs."""
    lines = ["#!/usr/bin/env bash", f"# {candidate.plan.id}, for {handover.stack} {handover.version}"]
    lines += [f"# {note}" for note in handover.notes]
    lines += ["set -euo pipefail", 'cd "$(dirname "$0")"']
    lines += [f"export {name}={shlex.quote(value)}" for name, value in handover.environment.items()]
    return "\n".join([*lines, handover.command]) + "\n"
