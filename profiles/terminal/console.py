"""The terminal side that the four commands share: where text goes, progress, and how errors end.

With --json the machine-readable result stands alone on standard output; text for people goes to standard error.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from rich.console import Console as RichConsole
from rich.segment import Segment

from profiles.errors import EnvironmentFailure, TrainwrightError
from profiles.ranks.environment import in_job
from profiles.ranks.signals import STOPPING
from profiles.terminal.streams import standard_streams

if TYPE_CHECKING:
    import typer
    from rich.console import ConsoleOptions, RenderableType
    from rich.text import Text

INTERRUPTED = 128 + signal.SIGINT
# Exit codes of commands that a signal ended, and how that is said.
ENDED_BY: dict[int, str] = {
    INTERRUPTED: "interrupted",
    **{128 + number: f"stopped by {number.name}" for number in STOPPING},
}
# Rich takes 80 columns where there is no terminal; a pipe or a file deserves whole lines.
PIPE_COLUMNS = 160
QUIET_SECONDS = 1.0
# In a sentence, what is longer than any name or path that is meant is cut in its middle.
ENDLESS_WORD = re.compile(r"(\S{60})\S{80,}(\S{20})")
# What a terminal would obey rather than show: C0 and C1 but for tabulator and line feed, line and paragraph separators,
# and what turns the direction of reading round (Unicode's UAX 9).
OBEYED = (
    *(code for code in range(0x20) if chr(code) not in "\t\n"), *range(0x7F, 0xA0),
    0x061C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A),
)  # fmt: skip
ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in OBEYED}


def shown(text: str) -> str:
    """`text` with what a terminal would obey written out: a name from a file moves no cursor and hides nothing."""
    return text.translate(ESCAPES)


class Console(RichConsole):
    """Rich's console, on which all text is shown and none obeyed: no markup, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, text wrapped at its spaces; a longer word, as of a path, stays whole for the terminal to wrap."""
        if all(isinstance(one, str) for one in objects) and not self.soft_wrap:
            lines = shown(" ".join(objects)).split("\n")
            objects, options = ("\n".join(map(self._wrapped, lines)),), {**options, "soft_wrap": True}
        super().print(*objects, **options)

    def _wrapped(self, line: str) -> str:
        return textwrap.fill(line, self.width, break_long_words=False, break_on_hyphens=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text as it will be laid out."""
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of anything that is printed; rich's own movements of the cursor are `control` segments."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)


def console(json_output: bool = False) -> Console:
    """The console for people: standard output, or standard error where JSON has the former."""
    stream = sys.stderr if json_output else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(stderr=json_output, width=width)


def print_json(text: str) -> None:
    """Print a JSON text, and nothing else, on standard output."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


@contextmanager
def progress(out: RichConsole, title: str) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on a terminal after a second, nothing elsewhere.

    Call what it gives with a fraction (0..1) and a few words.
    """
    if not out.is_terminal:
        yield lambda fraction, words: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}", markup=False, table_column=Column(overflow="fold")),
    )
    bar = Progress(*columns, console=out, transient=True)
    task = bar.add_task(shown(title), total=1.0, words="")
    # What is done within a second needs no bar.
    start = threading.Timer(QUIET_SECONDS, bar.start)
    start.daemon = True
    start.start()
    try:
        yield lambda fraction, words: bar.update(task, completed=fraction, words=shown(words))
    finally:
        start.cancel()
        start.join()
        if bar.live.is_started:
            bar.stop()


def run(app: typer.Typer) -> NoReturn:
    """Run a command and exit: errors meant for the user become one sentence on standard error and their exit code."""
    asked: dict[str, bool] = {}  # filled by the options of profiles.workloads.module_options
    if not re.fullmatch("[1-9][0-9]{0,5}", os.environ.get("COLUMNS", "1")):
        # No width is meant by it.
        del os.environ["COLUMNS"]
    is_closed = cast("TextIO | None", sys.stdout) is None
    # What was loaded need not be taken apart at the end, which takes a second where torch was, after a Ctrl-C too.
    atexit.register(gc.freeze)
    with standard_streams(), _ended_by_sigterm():
        try:
            if is_closed:
                raise EnvironmentFailure("standard output is closed: redirect it to /dev/null if it is not wanted")
            code = _exit_code(app, asked)
            sys.stdout.flush()
        except TrainwrightError as error:
            code = _fail(str(error), error.exit_code, error.details if any(asked.values()) else "")
        except KeyboardInterrupt:
            code = _fail("interrupted: nothing was written", INTERRUPTED)
        except MemoryError:
            code = _fail("this machine's memory is exhausted: use a smaller model, batch or sequence", 5)
        # Python ends itself by SIGINT where an interrupt once passed through a text that was run, as torch has some
        # while it is loaded; running another one takes that back.
        exec("")
        raise SystemExit(code)


def _exit_code(app: typer.Typer, asked: dict[str, bool]) -> int | str | None:
    """What the command ends with, which typer and the launcher raise: after a signal, without a word."""
    try:
        app(obj=asked)
    except SystemExit as end:
        if isinstance(end.code, int) and end.code in ENDED_BY:
            return _fail(f"{ENDED_BY[end.code]}: nothing was written", end.code)
        return end.code
    return 0


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """While entered, SIGTERM ends the command as an interrupt does: temporary files go, and a word is said.

    A rank that torchrun or Slurm started is left to them: it may wait for others in a call that no signal ends.
    """
    if in_job() or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(sentence: str, exit_code: int, details: str = "") -> int:
    # One line for a program to read, whatever names are in it, wrapped at its spaces for people.
    out = Console(stderr=True, soft_wrap=not sys.stderr.isatty())
    out.print("error: " + ENDLESS_WORD.sub(r"\1...\2", sentence.replace("\n", "\\n")))
    if details:
        out.print(details)
    return exit_code
