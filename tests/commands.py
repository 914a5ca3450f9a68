"""The four commands within the process of a test."""

from typer.testing import CliRunner

from executor.command import app as execute
from planner.command import app as plan
from profiles.command import app as profile
from profiles.errors import TrainwrightError
from reports.command import app as compare

APPS = {"profile": profile, "plan": plan, "execute": execute, "compare": compare}


def outcome(command: str, *arguments: object) -> tuple[int, str]:
    """The exit code of a command and what it says: the sentence of its error, or all of its output.

    Anything but an error meant for the user is raised.
    """
    result = CliRunner().invoke(APPS[command], [*map(str, arguments)])
    if isinstance(result.exception, TrainwrightError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output
