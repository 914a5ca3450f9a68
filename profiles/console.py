"""The terminal side that the four commands share: where text goes, progress, and how errors end.

With --json the machine-readable result stands alone on standard output; text for people goes to standard error.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from profiles.errors import TrainwrightError

if TYPE_CHECKING:
    import typer

INTERRUPTED = 130
# Rich takes 80 columns where there is no terminal; a pipe or a file deserves whole lines.
PIPE_COLUMNS = 160
QUIET_SECONDS = 1.0


def console(json_output: bool = False) -> Console:
    """The console for people: standard output, or standard error where JSON has the former."""
    stream = sys.stderr if json_output else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(stderr=json_output, width=width, highlight=False, soft_wrap=False, emoji=False)


def print_json(text: str) -> None:
    """Print a JSON text, and nothing else, on standard output."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


@contextmanager
def progress(out: Console, title: str) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on a terminal after a second, nothing elsewhere.

    Call what it gives with a fraction (0..1) and a few words.
    """
    if not out.is_terminal:
        yield lambda fraction, words: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[words]}"))
    bar = Progress(*columns, console=out, transient=True)
    task = bar.add_task(title, total=1.0, words="")
    # What is done within a second needs no bar.
    start = threading.Timer(QUIET_SECONDS, bar.start)
    start.daemon = True
    start.start()
    try:
        yield lambda fraction, words: bar.update(task, completed=fraction, words=words)
    finally:
        start.cancel()
        start.join()
        if bar.live.is_started:
            bar.stop()


def run(app: typer.Typer) -> NoReturn:
    """Run a command and exit: errors meant for the user become one sentence on standard error and their exit code."""
    asked: dict[str, bool] = {}  # filled by the options of profiles.module_options
    try:
        app(obj=asked)
    except TrainwrightError as error:
        _fail(str(error), error.exit_code, error.details if any(asked.values()) else "")
    except KeyboardInterrupt:
        _fail("interrupted: nothing was written", INTERRUPTED)
    except SystemExit as end:
        # Typer itself turns an interrupt into this exit, without a word.
        if end.code == INTERRUPTED:
            _fail("interrupted: nothing was written", INTERRUPTED)
        raise
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): that is no error, and nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except MemoryError:
        _fail("this machine's memory is exhausted: use a smaller model, batch or sequence", 5)
    raise SystemExit(0)


def _fail(sentence: str, exit_code: int, details: str = "") -> NoReturn:
    out = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    out.print(f"error: {sentence}", markup=False)
    if details:
        out.print(details, markup=False)
    raise SystemExit(exit_code)
