"""What is done with the reports of a run while it lasts, and what is said where it is ended. Torch-free."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import Interrupted, Stopped, TrainwrightError

if TYPE_CHECKING:
    from rich.console import Console

    from executor.run.run_folder import KeptRun
    from executor.run.sinks import Sinks
    from profiles.ranks.rank import Report


class Follower:
    """Takes the reports of rank 0: to the progress bar, the terminal and the log.

    `notices` are those to be kept with the result; `failure` is what first kept a report from being told: the run goes
    on, and the rest is not told.
    """

    def __init__(
        self,
        out: Console,
        advance: Callable[[float, str], object],
        verbose: bool,
        kept: KeptRun | None,
        sinks: Sinks | None = None,
    ) -> None:
        self._out, self._advance, self._verbose, self._kept, self._sinks = out, advance, verbose, kept, sinks
        self.notices: tuple[str, ...] = ()
        self.failure: TrainwrightError | None = None

    def __call__(self, report: Report) -> None:
        """Take one report."""
        if self.failure is not None:
            return
        try:
            self._advance(report.fraction, report.text)
            if report.notice:
                self.notices += (report.notice,)
                self._out.print(f"note: {report.notice}")
            if self._verbose and report.line:
                self._out.print(report.line)
            if self._kept is not None and report.values:
                self._kept.append(report.values)
            numbers = {name: value for name, value in report.values.items() if isinstance(value, int | float)}
            if self._sinks is not None and "step" in numbers:
                self._sinks.add(numbers, int(numbers["step"]))
        except TrainwrightError as error:
            self.failure = error


@contextlib.contextmanager
def saying_what_is_kept(checkpoints: str | None, kept: KeptRun | None) -> Iterator[None]:
    """While entered, a run that is ended says what there is of it: the newest checkpoint of the folder, and its log.

    Raises: Interrupted on Ctrl-C, Stopped on SIGTERM.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {_kept(checkpoints, kept)}") from None
    except SystemExit as end:
        if end.code != 128 + signal.SIGTERM:
            raise
        raise Stopped(f"stopped by SIGTERM: {_kept(checkpoints, kept)}") from None


def _kept(checkpoints: str | None, kept: KeptRun | None) -> str:
    from executor.run.checkpoint import latest

    newest = latest(Path(checkpoints)) if checkpoints is not None else None
    there = [f"the checkpoints up to {newest} (continue with --resume)"] if newest is not None else []
    if kept is not None and kept.log is not None:
        there.append(f"the log {kept.log}")
    return "nothing was written" + (f" but {' and '.join(there)}" if there else "")
