"""What a page of plans shows, as values: everything is worked out here, and only drawn elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from planner.answers import Change
from planner.pages.machine_drawing import Drawing, drawing_of
from planner.prediction import Candidate, PlanFile, Span
from planner.published.resembling import Resembling, resembling
from planner.simulate.step import simulate
from planner.space.answers import Answer
from planner.space.grounds import Ground, grounds
from planner.space.memory_by_layer import HeldBytes, held_by_kind, held_by_layer
from planner.space.other_plans import other_plans
from planner.space.questions import sensitivity
from planner.space.to_events import step_work
from planner.space.to_plans import jobs_at
from planner.terminal.progress import OnProgress, pieces, silent
from profiles.units import format_percent, format_seconds

# Plans beside those of the table.
MOST_OTHERS: Final = 60
# Passes of a step that are simulated, and spans of its timeline that are drawn.
MOST_SIMULATED, MOST_DRAWN = 20_000, 3_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The spans of the best plan's step, up to `drawn_until_seconds` of `step_seconds`, by what `origin` says.

    `refusal` says why there are none.
    """

    spans: tuple[Span, ...] = ()
    step_seconds: float = 0.0
    drawn_until_seconds: float = 0.0
    origin: str = "played event by event"
    refusal: str = ""

    @property
    def words(self) -> str:
        """How much of the step is drawn."""
        if self.refusal:
            return self.refusal
        whole = f"One step of the best plan, {self.origin}: {format_seconds(self.step_seconds)}."
        if self.drawn_until_seconds >= self.step_seconds:
            return whole
        share = format_percent(self.drawn_until_seconds / self.step_seconds)
        return f"{whole} Only its first {share} is drawn; --trace FILE writes all of it for Perfetto."


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A plan file and what its page says beside it; what is not known is empty, or None.

    `others` are plans beside those of the table, `memory` that of the best plan's fullest rank, `memory_bytes` what a
    device has, of which `headroom_fraction` must stay free, `grounds` what the best plan's prediction rests on.
    `command` is the command line.
    """

    file: PlanFile
    others: tuple[Candidate, ...] = ()
    memory: tuple[HeldBytes, ...] = ()
    memory_bytes: float | None = None
    headroom_fraction: float = 0.0
    command: str = ""
    timeline: Timeline = Timeline()
    drawing: Drawing | None = None
    changes: tuple[Change, ...] = ()
    grounds: tuple[Ground, ...] = ()
    resembling: Resembling | None = None

    @property
    def plans(self) -> tuple[Candidate, ...]:
        """All plans, those of the table first."""
        return (*self.file.candidates, *self.others)

    @property
    def best(self) -> Candidate:
        """The plan of choice."""
        return self.file.candidates[0]


def content_of_file(file: PlanFile, command: str = "") -> Content:
    """What a plan file alone can tell: of two kinds of devices, or of a job that was read."""
    best = file.candidates[0].prediction
    spans = best.spans
    stop = max((span.stop_seconds for span in spans), default=0.0)
    refusal = "" if spans else "No timeline: the plan has no pipeline, or one that is too long to draw."
    return Content(
        file=file,
        command=command,
        memory=held_by_kind(best.bytes_per_rank),
        timeline=Timeline(
            spans=spans, step_seconds=stop, drawn_until_seconds=stop, origin="by its schedule", refusal=refusal
        ),
        changes=file.answers.sensitivity,
    )


def content_of(
    answer: Answer,
    offers_all: bool,
    on_progress: OnProgress = silent,
    file: PlanFile | None = None,
    command: str = "",
) -> Content:
    """All that a search can tell of its plans; `file` is what was made of its answer, where that is more."""
    space, place, file = answer.space, answer.places[0], file or answer.file
    best = file.candidates[0]
    looking, playing, changing = pieces(on_progress, (2.0, 1.0, 3.0))
    looking(0.0, "pricing other plans")
    others = other_plans(answer, offers_all, MOST_OTHERS)
    playing(0.0, "simulating the best plan")
    timeline = _timeline(answer)
    changes: Sequence[Change] = file.answers.sensitivity or sensitivity(answer, changing)
    return Content(
        file=file,
        others=tuple(others),
        memory=held_by_layer(space, place),
        memory_bytes=space.at.whole_memory_bytes,
        headroom_fraction=space.at.headroom_fraction,
        command=command,
        timeline=timeline,
        drawing=drawing_of(best.plan, space.at),
        changes=tuple(changes),
        grounds=grounds(space, place, best.prediction, file.cluster),
        resembling=None if space.at.measured else resembling(jobs_at(space, [place])),
    )


def _timeline(answer: Answer) -> Timeline:
    """The best plan's step by event simulation, as spans of its pipeline ranks."""
    plan = answer.file.candidates[0].plan
    if plan.num_stages * plan.num_microbatches > MOST_SIMULATED:
        return Timeline(refusal="No timeline: a step has too many passes to simulate here; --trace FILE simulates it.")
    played = simulate(step_work(answer.space, answer.places[0]))
    spans = sorted(
        (
            Span(
                stage=span.rank,
                action=span.name,
                microbatch=span.microbatch,
                start_seconds=span.start_seconds,
                stop_seconds=span.stop_seconds,
            )
            for span in played.spans
            if span.replica == 0 and span.stop_seconds > span.start_seconds
        ),
        key=lambda span: span.start_seconds,
    )
    if len(spans) <= MOST_DRAWN:
        return Timeline(spans=tuple(spans), step_seconds=played.step_seconds, drawn_until_seconds=played.step_seconds)
    until = spans[MOST_DRAWN].start_seconds
    # What is under way at the cut ends there.
    drawn = [replace(span, stop_seconds=min(span.stop_seconds, until)) for span in spans[:MOST_DRAWN]]
    drawn = [span for span in drawn if span.stop_seconds > span.start_seconds]
    return Timeline(spans=tuple(drawn), step_seconds=played.step_seconds, drawn_until_seconds=until)
