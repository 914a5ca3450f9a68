"""Options about modules of the user's, which several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from profiles.workloads import foreign_code, trust


def _ask_for_traceback(context: typer.Context, value: bool) -> bool:
    # `console.run` hands this in, and shows an error's details where it was asked to.
    if isinstance(context.obj, dict):
        context.obj[foreign_code.OPTION] = value
    return value


TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        trust.OPTION, metavar="NAME", help="Allow a file to import this module of yours for its model; may be repeated."
    ),
]
TracebackOption = Annotated[
    bool,
    typer.Option(
        foreign_code.OPTION,
        callback=_ask_for_traceback,
        expose_value=False,
        help="If your own module fails, show the full traceback.",
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Task to train MODEL for, such as question-answering, if its configuration does not say.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="DIR", help="Local folder with the weights of MODEL, as safetensors."),
]
