"""The version of this program, which all of its commands print alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PACKAGE = "trainwright"
SOURCES = Path(__file__).parent.parent / "pyproject.toml"


def version() -> str:
    """The version that is installed; of sources that are not, their own."""
    import tomllib
    from importlib import metadata

    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return str(tomllib.loads(SOURCES.read_text(encoding="utf-8"))["project"]["version"])


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"{PACKAGE} {version()}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, expose_value=False, help="Print the version and exit."
    ),
]
