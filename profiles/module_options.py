"""Options about modules of the user's, which several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from profiles import trust

TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        trust.OPTION, metavar="NAME", help="Let a file import this module of yours for its model; may be repeated."
    ),
]
