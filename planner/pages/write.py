"""`plan --page FILE`: the page of what was found, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planner.pages.content import content_of, content_of_file
from planner.pages.page import render
from profiles.files import write_text

if TYPE_CHECKING:
    from planner.ask import Asked
    from planner.terminal.progress import OnProgress


def write_page(path: Path, found: Asked, offers_all: bool, on_progress: OnProgress, command: str = "") -> None:
    """Write the page: all of it where one search found the plans, else what the plan file tells.

    Raises: EnvironmentFailure where it cannot be written.
    """
    if found.answer is None:
        content = content_of_file(found.file, command)
    else:
        content = content_of(found.answer, offers_all, on_progress, found.file, command)
    write_text(path, render(content))
