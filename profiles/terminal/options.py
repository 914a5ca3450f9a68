"""Which options of a command go together, as a table: an option that would be ignored is refused."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from profiles.errors import InputError

if TYPE_CHECKING:
    import typer


def given_options(context: typer.Context) -> dict[str, str]:
    """What the command line gives, by parameter, as its user writes it: {"max_restarts": "--max-restarts"}.

    Switches that are turned off count as not given.
    """
    return {
        str(one.name): max(one.opts, key=len)
        for one in context.command.params
        if one.param_type_name == "option"
        and getattr(context.get_parameter_source(str(one.name)), "name", "") == "COMMANDLINE"
        and context.params.get(str(one.name)) is not False
    }


def command_line(context: typer.Context, name: str) -> str:
    """The command as it may be typed again: its `name` and the options that were given, in their order."""
    options = {str(one.name): one for one in context.command.params if one.param_type_name == "option"}
    words = [name]
    for key, value in context.params.items():
        one, source = options.get(key), context.get_parameter_source(key)
        if one is None or getattr(source, "name", "") != "COMMANDLINE":
            continue
        if isinstance(value, bool):
            words += [max(one.opts if value else one.secondary_opts or one.opts, key=len)]
            continue
        for each in value if isinstance(value, list | tuple) else (value,):
            words += [max(one.opts, key=len), str(each)]
    return shlex.join(words)


def check_options(
    context: typer.Context, needs: Mapping[str, tuple[str, str]], takes: Mapping[str, Collection[str]]
) -> None:
    """Hold the command line against a table.

    `needs` has for an option the one that it says something about, and its value where only one will do; `takes` has
    for an option that changes what the command does the others that are read then.
    Raises: InputError that names both options.
    """
    given = given_options(context)
    for name, (needed, value) in needs.items():
        if name in given and (needed not in given or (value and context.params[needed] != value)):
            words = f"--{needed.replace('_', '-')} {value}".strip()
            raise InputError(f"{given[name]} has no effect without {words}: give both or neither")
    for name, others in takes.items():
        ignored = [given[other] for other in given if name in given and other != name and other not in others]
        if ignored:
            raise InputError(f"{ignored[0]} cannot be combined with {given[name]}: leave one of them out")


def refuse_ignored(context: typer.Context, ignored: Collection[str], what: str) -> None:
    """Refuse options that are given, and are not read where `what` is compared or planned for.

    Raises: InputError that names the first.
    """
    given = given_options(context)
    for name in ignored:
        if name in given:
            raise InputError(f"{given[name]} does not apply to {what}: leave it out")
