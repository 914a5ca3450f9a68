"""What `plan` is asked, answered: the plan file, and the page of it where one is asked for."""

from __future__ import annotations

from pathlib import Path

from planner.ask import Asked, Compression, ask_whole
from planner.prediction import PlanFile
from planner.request import Request
from planner.space.beside import Questions
from planner.terminal.handover import read_job
from planner.terminal.progress import OnNote, OnProgress, pieces

# Of the time of a search, what its page takes.
PAGE_WEIGHT = 0.7


def plans_with_page(
    request: Request,
    questions: Questions,
    compression: Compression | None,
    page: Path | None,
    on_progress: OnProgress,
    on_note: OnNote,
    command: str = "",
) -> PlanFile:
    """The plans of a search, with all that is known of them on `page`, where there is one.

    `command` is the command line, which the page tells.
    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits; EnvironmentFailure where the page
    cannot be written.
    """
    planning, drawing = pieces(on_progress, (1.0, PAGE_WEIGHT if page else 0.0))
    found = ask_whole(request, questions, planning, on_note, compression)
    _write(page, found, request.simulate, drawing, command)
    return found.file


def job_with_page(
    source: Path, request: Request, page: Path | None, on_progress: OnProgress, command: str = ""
) -> PlanFile:
    """The plans beside a job that a file tells of, with their page.

    Raises: InputError where the file says too little; EnvironmentFailure where the page cannot be written.
    """
    result = read_job(source, request, on_progress)
    _write(page, Asked(file=result), request.simulate, on_progress, command)
    return result


def _write(page: Path | None, found: Asked, offers_all: bool, on_progress: OnProgress, command: str) -> None:
    if page is not None:
        # Plotly and pandas are loaded only where something is drawn.
        from planner.pages.write import write_page

        write_page(page, found, offers_all, on_progress, command)
