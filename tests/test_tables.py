"""At 80 columns every table of every command keeps every word whole."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from planner.terminal.listing import KINDS, explain
from profiles.terminal import console
from profiles.terminal.console import Console, progress
from profiles.terminal.tables import plain_table, print_table
from tests.screens import LONG, SCREENS

COLUMNS = 80


def printed(screen: str, width: int) -> str:
    out = Console(file=io.StringIO(), width=width)
    SCREENS[screen]("a name", out)
    return out.file.getvalue()


def words_of(text: str) -> set[str]:
    # A row that became a paragraph has them between its cells, and none of the headers over its name.
    return {word.strip(",:") for word in text.split()} - {"compression", "layer"}


@pytest.mark.parametrize("screen", SCREENS)
def test_every_word_is_whole(screen):
    narrow, wide = printed(screen, COLUMNS), printed(screen, 500)
    assert max(map(len, narrow.splitlines())) <= COLUMNS
    assert "…" not in narrow
    assert words_of(narrow) >= words_of(wide)
    # The tables that everybody reads are tables here too.
    if screen in ("plan", "execute", "compare"):
        assert any(line.split()[:2] == ["#", "plan"] for line in narrow.splitlines())


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_every_word_of_a_list_is_whole(kind):
    narrow, wide = (Console(file=io.StringIO(), width=width) for width in (COLUMNS, 500))
    for out in (narrow, wide):
        explain(kind, out, False)
    assert max(map(len, narrow.file.getvalue().splitlines())) <= COLUMNS
    assert words_of(narrow.file.getvalue()) == words_of(wide.file.getvalue())


def table_of(*cells):
    table = plain_table()
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("plan")
    table.add_column("tokens per second", justify="right", no_wrap=True)
    table.add_row(*cells)
    return table


def test_a_table_wraps_at_spaces_only_as_far_as_it_must():
    out = Console(file=io.StringIO(), width=40)
    print_table(table_of("1", "dp2 mb4x1 grad-bf16 interleaved-1f1b", "47.5 k"), out, named_by=1)
    lines = [line.rstrip() for line in out.file.getvalue().splitlines()]
    assert lines == [
        "                              tokens per",
        "#  plan                           second",
        "1  dp2 mb4x1 grad-bf16            47.5 k",
        "   interleaved-1f1b",
    ]


def test_what_fits_no_table_becomes_a_paragraph():
    out = Console(file=io.StringIO(), width=20)
    print_table(table_of("1", "dp2 mb4x1 interleaved-1f1b", "47.5 kilotokens"), out, named_by=1)
    lines = [line.rstrip() for line in out.file.getvalue().splitlines()]
    assert lines == ["1  dp2 mb4x1", "interleaved-1f1b", "  tokens per second:", "  47.5 kilotokens"]


def test_a_progress_bar_keeps_what_it_says(monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0)
    out = Console(file=io.StringIO(), width=COLUMNS, force_terminal=True, color_system=None)
    with progress(out, "3 plans") as advance:
        advance(0.5, f"warming up {LONG.id}")
        time.sleep(0.1)
    said = out.file.getvalue()
    assert "…" not in said
    assert words_of(said) >= set(LONG.id.split()[:-1])


def test_a_terminal_of_80_columns():
    """A process of its own on a terminal that says how wide it is."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "planner", "--model", "llama-3.2-1b", "--gpus", "8", "--device", "h100-sxm"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "dumb"}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    said = b""
    while True:
        try:
            read = os.read(controller, 65536)
        except OSError:
            # The terminal is gone with its last process.
            break
        said += read
    os.close(controller)
    assert process.wait() == 0, said
    lines = said.decode().splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert "…" not in said.decode()
    assert any(line.split()[:2] == ["#", "plan"] for line in lines)
