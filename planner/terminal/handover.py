"""`plan --from FILE` and `--export STACK`: jobs of other software read, and plans written down for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from planner.answers import ReadJob
    from planner.prediction import Candidate, PlanFile
    from planner.request import Request
    from planner.terminal.progress import OnProgress


def read_job(source: Path, request: Request, on_progress: OnProgress) -> PlanFile:
    """The plans beside a job of the user's; a plan file of ours as it is.

    Raises: InputError where the file says too little, or contradicts itself.
    """
    from planner.prediction import PlanFile
    from planner.stacks.handover import Given
    from planner.stacks.judge import judged
    from planner.stacks.registry import read
    from profiles import artifacts
    from profiles.inputs.foreign import read_text
    from profiles.library import load_sizes

    if not request.num_devices and artifacts.artifact_kind(source) == "plan":
        return artifacts.read(source, "plan", PlanFile)
    text = read_text(source, "give a plan file, or a configuration or log of other software")
    sizes = load_sizes(request.model) if isinstance(request.model, str) and request.model else None
    given = Given(
        num_devices=request.num_devices,
        sequence_length=request.sequence_length or 0,
        global_batch_size=request.global_batches[0] if request.global_batches else 0,
        workload=sizes.workload if sizes else None,
    )
    return judged(read(source, text, given), source, request, on_progress)


def write_export(stack: str, file: PlanFile, rank: int, folder: Path, out: Console) -> None:
    """Write a plan of the file down for other software, and say what was written and what is left to do.

    Raises: InputError for a rank that the file has not; PlanError for a plan that the software cannot run.
    """
    from planner.stacks.write import hand_over

    candidate = _of_rank(file, rank)
    handover, paths = hand_over(stack, file, candidate, folder)
    software = f"{handover.stack} {handover.version}"
    out.print(f"plan {candidate.rank} ({candidate.plan.id}) written down for {software} in {folder}:")
    for path in paths:
        out.print(f"  {path.relative_to(folder)}")
    for note in (*_priced_for(stack, file), *handover.notes):
        out.print(f"note: {note}")


def _priced_for(stack: str, file: PlanFile) -> Iterator[str]:
    """By whose prices the plan was chosen, where those are not of the software that it is written down for."""
    if file.stack != stack:
        yield f"it was priced for {file.stack}; `plan --stack {stack}` searches and prices for {stack}"


def is_shown(export: str | None, source: Path | None) -> bool:
    """Whether an answer is shown: not where one that was shown before is only written down for other software."""
    from planner.purchase.answer import ARTIFACT
    from profiles.artifacts import artifact_kind

    return export is None or source is None or artifact_kind(source) not in ("plan", ARTIFACT)


def _of_rank(file: PlanFile, rank: int) -> Candidate:
    for candidate in file.candidates:
        if candidate.rank == rank:
            return candidate
    raise InputError(f"--rank {rank}: the plans are numbered 1 to {max(each.rank for each in file.candidates)}")


def lines(read: ReadJob, stack: str) -> Iterator[str]:
    """What is said of a job that was read."""
    from planner.verdict import CLOSE_FRACTION
    from profiles.units import format_bytes, format_percent, format_seconds

    half = (read.high_seconds - read.low_seconds) / 2 / read.step_seconds
    held = f"{format_bytes(read.peak_bytes)} of {format_bytes(read.memory_bytes)}"
    version = f" {read.version}" if read.version else ""
    yield f"your job ({stack}{version}): {read.plan}"
    yield f"  predicted {format_seconds(read.step_seconds)} ±{half:.0%} a step, {held} on its fullest rank"
    yield f"  {read.limit}"
    if read.measured_seconds is not None:
        off = format_percent(read.step_seconds / read.measured_seconds - 1, signed=True)
        yield f"  measured {format_seconds(read.measured_seconds)} a step (median of the log): predicted is {off}"
    if read.refusal:
        yield f"  {stack} is not known to run this: {read.refusal}"
    if read.better and read.gain_fraction > 0:
        new = format_seconds(read.step_seconds * (1 - read.gain_fraction))
        better = "better" if read.gain_fraction > CLOSE_FRACTION else f"as fast within {CLOSE_FRACTION:.0%}"
        yield f"  {better} in {stack}: {read.better}, {new} a step, {format_percent(read.gain_fraction)} less:"
    elif read.better:
        yield f"  a plan that fits in {stack}: {read.better}:"
    else:
        yield f"  no plan of {stack} is predicted to be faster"
    yield from (f"    {change}" for change in read.changes)
    for title, words in (("assumed", read.assumed), ("not understood", read.unread)):
        yield from (f"  {title}: {word}" for word in words)
    if read.unpriced:
        yield f"  understood, with no effect on the prediction: {', '.join(read.unpriced)}"
