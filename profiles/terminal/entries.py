"""Where each command starts: first what it is made of is looked at, then it is loaded by its name.

The packages that lie to the right are named, not imported, and nothing but the standard library is loaded before.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

from profiles.terminal.origins import DISTRIBUTION, PACKAGES, check_packages

# The package of each command, in the order of use.
COMMANDS = dict(zip(("profile", "plan", "execute", "compare"), PACKAGES, strict=True))
COMPLETION_VARIABLE = "_TRAINWRIGHT_COMPLETE"
COMPLETION_OPTIONS = {"--install-completion", "--show-completion"}


def start(command: str) -> NoReturn:
    """Run one of the four commands with the arguments of this process, and end it."""
    _run(f"{COMMANDS[command]}.command", COMMANDS[command])


def profile() -> NoReturn:
    """The console script `profile`."""
    start("profile")


def plan() -> NoReturn:
    """The console script `plan`."""
    start("plan")


def execute() -> NoReturn:
    """The console script `execute`."""
    start("execute")


def compare() -> NoReturn:
    """The console script `compare`."""
    start("compare")


def trainwright() -> NoReturn:
    """The console script `trainwright`: `trainwright plan ...` is `plan ...`."""
    command, arguments = "".join(sys.argv[1:2]), sys.argv[2:]
    if command not in COMMANDS or COMPLETION_VARIABLE in os.environ:
        _run("profiles.terminal.umbrella", "profiles")
    # A shell completes the words of one program: of the two, these options speak of the command itself.
    name = command if COMPLETION_OPTIONS & set(arguments) else f"{DISTRIBUTION} {command}"
    sys.argv[:] = [name, *arguments]
    start(command)


def _run(module: str, package: str) -> NoReturn:
    check_packages(package)
    try:
        importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        # What a command needs it may load late, and another release of a library may lack a part of it.
        missing = str(error.name)
        if missing.partition(".")[0] in PACKAGES:
            raise
        sys.stderr.write(
            f"error: the library `{missing}` is not installed: install it, or {DISTRIBUTION} with all it needs\n"
        )
        raise SystemExit(5) from None
    except KeyboardInterrupt:
        # While it was loaded; once it runs, `main` answers.
        sys.stderr.write("error: interrupted: nothing was written\n")
        raise SystemExit(130) from None
    raise SystemExit  # which `main` has done before
