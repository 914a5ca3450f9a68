"""A job of the user's, read from a file of the software that runs it: what it takes, and what would be better there."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.answers import ReadJob
from planner.ask import answer_to
from planner.parts import PART_TITLES
from planner.prediction import Candidate, PlanFile, Prediction
from planner.request import Request
from planner.settings import settings_of
from planner.space.answers import why_not_run
from planner.space.beside import Questions
from planner.space.files import plan_file, planned_for
from planner.space.one_plan import place_of
from planner.space.predictions import predictions
from planner.space.question import Setting
from planner.stacks.handover import Given, Handover, StackJob
from planner.stacks.priced_as import left_out
from planner.stacks.registry import exporters, readers
from planner.terminal.progress import OnProgress, silent
from planner.verdict import verdict
from profiles.errors import InputError, NoFeasiblePlanError
from profiles.machines.stacks import load_stack
from profiles.models.sizes import sizes_of
from profiles.units import format_bytes, format_percent, format_seconds

YOURS = "your job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A job at its question: its plan with what it takes, and where it is priced as something near."""

    at: Setting
    job: StackJob
    prediction: Prediction
    priced_as: tuple[str, ...]


def request_of(job: StackJob, asked: Request) -> Request:
    """The question that a job puts, beside what the user says on the command line.

    Raises: InputError where neither says what it runs on.
    """
    device = asked.device or job.device or None
    if device is None and asked.cluster is None and asked.machine is None:
        raise InputError("--from: the file does not say which devices the job runs on: give --device or --cluster")
    kernel = asked.attention_kernel or job.attention_kernel
    overlaps = asked.tensor_overlap if asked.tensor_overlap is not None else job.overlaps_tensor
    has_tensor_overlap = load_stack(job.stack).habits.can_overlap_tensor
    return replace(
        asked,
        model=asked.model or sizes_of(job.workload.name, job.workload.config),
        num_devices=job.num_devices,
        device=device,
        stack=job.stack,
        global_batches=(job.global_batch_size,),
        sequence_length=job.sequence_length,
        precisions=(job.plan.precision,),
        codecs=(job.plan.codec,),
        attention_kernel=kernel,
        tensor_overlap=overlaps if has_tensor_overlap else None,
        gradient_dtype=_gradients(job),
    )


def _gradients(job: StackJob) -> str | None:
    """What gradients are added up and sent in, where the file says so and a plan for its software can too."""
    said, runs = job.cells.get("gradient_dtype"), load_stack(job.stack).runs
    return said if runs and said in runs.gradient_dtypes and job.plan.precision != "fp32" else None


def priced(job: StackJob, asked: Request) -> Priced:
    """What a job takes.

    Raises: InputError where its plan is not legal, or the model has sizes that are not known here.
    """
    settings, _ = settings_of(replace(request_of(job, asked), simulate=True))
    at = replace(
        settings[0],
        compiled=job.plan.compiled,
        gradients_beside=_said(job, "overlap_grad"),
        parameters_beside=_said(job, "overlap_param"),
        fused_loss=job.cells.get("fused_loss", ""),
    )
    space, place, priced_as = place_of(at, job.plan)
    return Priced(at=at, job=job, prediction=predictions(space, [place])[0], priced_as=(*priced_as, *left_out(job, at)))


def _said(job: StackJob, column: str) -> bool | None:
    """Yes or no as the job's file says, None where it does not."""
    return job.cells[column] == "yes" if column in job.cells else None


def judged(job: StackJob, source: Path, asked: Request, on_progress: OnProgress = silent) -> PlanFile:
    """The plans of the same software beside the job, which is the last of them, and what to change.

    Raises: InputError as `priced`.
    """
    own = priced(job, asked)
    better: PlanFile | None
    try:
        better = answer_to(request_of(job, asked), Questions(), on_progress).file
        reason = ""
    except NoFeasiblePlanError as error:
        better, reason = None, str(error)
    found = replace(better or _alone(own, reason), candidates=_beside(own, better))
    mine = next(each for each in found.candidates if each.plan == job.plan)
    return replace(found, answers=replace(found.answers, read=_read(own, source, found, mine)))


def _alone(own: Priced, reason: str) -> PlanFile:
    return plan_file(planned_for(own.at), (), num_legal=0, rejected={}, notes=(reason,))


def _beside(own: Priced, better: PlanFile | None) -> tuple[Candidate, ...]:
    """The table's candidates with the user's job, which is marked, or comes last."""
    others = better.candidates if better else ()
    for number, each in enumerate(others):
        if each.plan == own.job.plan:
            mine = replace(each, verdict=f"{each.verdict} [{YOURS}]", folded_into=0)
            return (*others[:number], mine, *others[number + 1 :])
    best = others[0].prediction if others else own.prediction
    words = verdict(own.at.memory_bytes, best, own.prediction, own.job.plan, is_best=False)
    can_run = not why_not_run(own.at, own.job.plan)
    rank = max((each.rank for each in others), default=0) + 1
    mine = Candidate(
        rank=rank, plan=own.job.plan, prediction=own.prediction, verdict=f"{words} [{YOURS}]", executable=can_run
    )
    return (*others, mine)


def _read(own: Priced, source: Path, found: PlanFile, mine: Candidate) -> ReadJob:
    job, took = own.job, own.prediction
    measured = job.median_seconds
    best = found.candidates[0]
    gain = 1 - best.prediction.step_seconds / took.step_seconds if best is not mine else 0.0
    is_better = gain > 0 or (not took.fits and best is not mine)
    return ReadJob(
        source=str(source),
        version=job.version,
        plan=job.plan.id,
        step_seconds=took.step_seconds,
        low_seconds=took.low_seconds,
        high_seconds=took.high_seconds,
        peak_bytes=took.peak_bytes,
        memory_bytes=own.at.memory_bytes,
        limit=_limit(took, own.at),
        measured_seconds=measured,
        better=best.plan.id if is_better else "",
        gain_fraction=gain if is_better else 0.0,
        changes=tuple(_changes(job, found, mine, best)) if is_better else (),
        refusal=why_not_run(own.at, job.plan),
        unread=job.unread,
        unpriced=job.unpriced,
        assumed=(*job.assumed, *own.priced_as),
    )


def _limit(took: Prediction, at: Setting) -> str:
    """What most of the time beside computing goes to, or how far the job is from fitting."""
    if not took.fits:
        over, band = took.peak_bytes - at.memory_bytes, at.stack.memory.band
        if over < band * took.peak_bytes:
            within = f"within the error of predicted memory, {format_percent(band)}"
            return f"it may not fit: {format_bytes(over)} over on its fullest rank, {within}"
        return f"it does not fit: {format_bytes(over)} over on its fullest rank"
    others = {part: seconds for part, seconds in took.seconds.items() if part != "compute"}
    most = max(others, key=lambda part: others[part])
    share = format_percent(others[most] / took.step_seconds)
    computing = format_percent(took.seconds["compute"] / took.step_seconds)
    return f"{computing} computes; most of the rest is {PART_TITLES[most]}, {share} ({format_seconds(others[most])})"


def _changes(job: StackJob, found: PlanFile, mine: Candidate, best: Candidate) -> Iterator[str]:
    """The lines of the software's words that differ between the job and a better plan."""
    write = exporters().get(job.stack)
    if write is None:
        return
    try:
        before, after = write(found, mine), write(found, best)
    except InputError as error:
        yield f"not written: {error}"
        return
    if job.words:
        yield from _changed(before.environment, after.environment, "export {}={}")
        yield from _changed(job.words, _words_of(after, job), "{} {}")
        return
    for name, text in after.files.items():
        old = before.files.get(name, "")
        if name.endswith(".json") and old:
            yield from _different_settings(json.loads(old), json.loads(text))
        else:
            yield from _different(old.splitlines(), text.splitlines())


def _words_of(handover: Handover, job: StackJob) -> Mapping[str, str]:
    """A plan's settings as its own software's reader tells them."""
    given = Given(num_devices=job.num_devices)
    for name, text in handover.files.items():
        for reader in readers():
            if reader.recognises(Path(name), text):
                return reader.read(Path(name), text, given).words
    return {}


def _changed(old: Mapping[str, str], new: Mapping[str, str], form: str) -> Iterator[str]:
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            for sign, words in (("-", old), ("+", new)):
                if name in words:
                    yield f"{sign} {form.format(name, words[name])}".rstrip()


def _different_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """The settings of JSON that differ; what goes is a whole block, for the user's may have more in it."""
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) == new.get(name) or name.startswith("_"):
            continue
        if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
            yield from _different_settings(old[name], new[name])
            continue
        for sign, settings in (("-", old), ("+", new)):
            if name in settings:
                is_whole = sign == "-" and isinstance(settings[name], dict)
                yield f'{sign} "{name}": {json.dumps(settings[name])}{", and everything in it" if is_whole else ""}'


def _different(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    for line in difflib.unified_diff(old, new, n=0, lineterm=""):
        if line[:1] in "+-" and line[:3] not in ("+++", "---") and not line[1:].lstrip().startswith("#"):
            yield f"{line[0]} {line[1:].strip()}"
