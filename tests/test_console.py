"""Names from files are shown in a terminal, not obeyed, by whatever prints them."""

import io
import json
import os
import signal
import sys
import time
import unicodedata

import pytest
import typer

from planner.command import main as plan_main
from profiles import artifacts
from profiles.errors import EnvironmentFailure
from profiles.terminal import console
from profiles.terminal.console import Console
from tests.machine_builders import machine
from tests.screens import SCREENS, named_run_file
from tests.test_reports_command import compare

# Clears the screen, sets the title, turns the text red by C1, goes back to the line's start, turns reading round.
ATTACK = "ours\x1b[2J\x1b]0;title\x07\x9b31m\r\b\x7f\u202edetrever\u2066\u200f\u2028[bold red]end[/]"


def obeyed(text: str) -> set[str]:
    """Characters of `text` that a terminal obeys, by Unicode's own categories; zero-width joiners are letters' own."""
    return {
        char
        for char in text
        if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") and char not in "\n\t\u200b\u200c\u200d"
    }


def test_the_attack_has_all_kinds():
    assert len(obeyed(ATTACK)) == 10


@pytest.mark.parametrize("screen", SCREENS)
def test_names_are_shown_and_not_obeyed(screen):
    out = Console(file=io.StringIO(), width=200)
    SCREENS[screen](ATTACK, out)
    said = out.file.getvalue()
    assert not obeyed(said)
    assert "ours\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\x0d\\x08\\x7f\\u202edetrever" in "".join(said.split("\n"))
    # Rich's own markup is text as well.
    assert "[bold red]end[/]" in said or screen == "profile model"


def test_a_coloured_terminal_has_only_our_own_escapes(monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0)
    plain, coloured = (
        Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system="standard" if terminal else None)
        for terminal in (False, True)
    )
    for out in (plain, coloured):
        with console.progress(out, ATTACK) as advance:
            advance(0.5, ATTACK)
            time.sleep(0.1)
        SCREENS["compare"](ATTACK, out)
    said = coloured.file.getvalue()
    assert {"\x1b[2J", "\x1b]", "\x9b", "\r\b", "\u202e"} & set(said) == set()
    assert "\x1b[2J" not in said
    assert "\x1b]0" not in said


def run(main, monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["plan", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_command_shows_them_in_its_output_and_its_errors(tmp_path, monkeypatch, capsys):
    path = tmp_path / "machine.json"
    artifacts.write(path, "machine-profile", machine(name=ATTACK))
    arguments = ("--model", "llama-26m", "--gpus", "2", "--machine", path)
    assert run(plan_main, monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert not obeyed(said)
    assert "\\x1b[2J" in said
    path.write_text(json.dumps({"artifact": ATTACK, "schema": 1}))
    assert run(plan_main, monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert "\\x1b[2J" in said
    assert not obeyed(said)


def test_json_is_escaped_by_its_own_rules(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.json"
    artifacts.write(path, "run", named_run_file(ATTACK))
    assert compare(monkeypatch, path, "--json") == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert not obeyed(captured.out + captured.err)


def app_of(act) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(act)
    return app


def ended(act, monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as end:
        console.run(app_of(act))
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("number", "code", "sentence"),
    [
        (signal.SIGINT, 130, "error: interrupted: nothing was written"),
        (signal.SIGTERM, 143, "error: stopped by SIGTERM: nothing was written"),
    ],
)
def test_a_signal_is_a_sentence(number, code, sentence, monkeypatch, capsys):
    before = signal.getsignal(number)

    def act() -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    assert ended(act, monkeypatch) == code
    assert capsys.readouterr().err.strip() == sentence
    assert signal.getsignal(number) is before


def test_an_error_is_a_sentence(monkeypatch, capsys):
    def act() -> None:
        raise EnvironmentFailure(f"cannot write {ATTACK}\nerror: a second one {'x' * 100_000}")

    assert ended(act, monkeypatch) == 5
    said = capsys.readouterr().err
    assert said.startswith("error: cannot write ours\\x1b[2J")
    assert said.endswith("\\nerror: a second one " + "x" * 60 + "..." + "x" * 20 + "\n")
    assert said.count("\n") == 1
    assert not obeyed(said)
