"""What `trainwright` answers itself: help, version, completion, and a word that is no command."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

from profiles.terminal import console
from profiles.terminal.entries import COMMANDS
from profiles.version import VersionOption

HELP = {
    "profile": "Learn what a model is made of, and what this machine can do.",
    "plan": "Predict every legal parallel layout, and rank them.",
    "execute": "Run plans on this machine's ranks, and measure them.",
    "compare": "Put what was measured beside what was predicted.",
}


class Umbrella(TyperGroup):
    """The four commands as one, each loaded when a shell completes its words."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load a command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        app = importlib.import_module(f"{COMMANDS[cmd_name]}.command").app
        return typer.main.get_command(app)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first of `args` names.

        Raises: UnknownNameError with the nearest.
        """
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            from profiles.errors import UnknownNameError

            raise UnknownNameError("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table of commands, none of which is loaded for it."""
        with formatter.section("Commands"):
            formatter.write_dl(list(HELP.items()))


app = typer.Typer(cls=Umbrella, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def trainwright(version: VersionOption = False) -> None:
    """Plan the training of a large model, run the best plan, and compare.

    Each command stands alone as well: `plan` is `trainwright plan`. `COMMAND --help` tells its options.
    """


def main() -> None:
    """Answer what stands on the command line of `trainwright`."""
    console.run(app)
