"""Long answers say how far they are, on a terminal and after a second; large files say first how large they will be."""

import io
import re
import time
from itertools import pairwise

import pytest
from rich.console import Console
from typer.testing import CliRunner

from planner.ask import Request, ask
from planner.command import app
from planner.space import export
from planner.space.beside import Questions
from planner.space.explore import explore
from planner.space.layouts import Options
from planner.terminal.progress import pieces
from profiles.errors import EnvironmentFailure
from profiles.library import load_sizes
from profiles.terminal import console
from profiles.units import format_count
from tests.test_space import make

SMALL = ("--model", "llama-3.2-1b", "--gpus", "4", "--device", "h100-sxm", "--global-batch", "8")


class Heard:
    """What a callback was told."""

    def __init__(self):
        self.fractions, self.words = [], []

    def __call__(self, fraction, words):
        self.fractions.append(fraction)
        self.words.append(words)

    def check(self):
        assert all(0 <= before <= after <= 1 for before, after in pairwise(self.fractions))


def test_pieces_fill_the_whole():
    heard = Heard()
    for piece in pieces(heard, (3.0, 1.0)):
        piece(0.0, "start")
        piece(1.0, "end")
    assert heard.fractions == [0.0, 0.75, 0.75, 1.0]


def test_a_search_says_how_many_of_its_plans_are_priced():
    heard = Heard()
    space = explore(make(num_devices=16), Options(), on_progress=heard)
    heard.check()
    assert heard.words[0] == f"{format_count(len(space.layouts))} layouts, bf16"
    assert heard.fractions[-1] == 1
    assert len(heard.fractions) > 3
    assert re.fullmatch(r"[\d.]+ [kM]? ?of ([\d.]+ [kM]?) ?plans, bf16", heard.words[1])
    assert space.generated == explore(make(num_devices=16), Options()).generated


@pytest.mark.parametrize(
    "request_of",
    [
        {"device": "h100-sxm", "num_devices": 4, "codecs": ("none", "bf16")},
        {"device": "h100-sxm", "num_devices": 4, "precisions": ("bf16", "fp8"), "simulate": True},
        {"cluster": "dgx-h100:8,dgx-a100:8", "num_devices": 16},
    ],
)
def test_all_parts_of_an_answer_are_pieces_of_one_progress(request_of, tmp_path):
    heard = Heard()
    request = Request(model=load_sizes("llama-3.2-1b"), global_batches=(16,), top=2, **request_of)
    is_mixed = "cluster" in request_of
    questions = Questions() if is_mixed else Questions(sensitivity=True, trace_file=tmp_path / "trace.json")
    ask(request, questions, heard)
    heard.check()
    said = " ".join(heard.words)
    for words in (
        "plans, bf16",
        "replaying the",
        *(() if is_mixed else ("simulating plan 1 of", "products 15 % slower")),
    ):
        assert words in said


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)


def test_a_bar_comes_after_a_second_and_on_terminals_only(monkeypatch):
    quick = terminal()
    with console.progress(quick, "planning") as advance:
        advance(0.5, "half")
    assert quick.file.getvalue() == ""
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.05)
    slow, pipe = terminal(), Console(file=io.StringIO(), width=80)
    for out in (slow, pipe):
        with console.progress(out, "planning") as advance:
            advance(0.5, "half of it")
            time.sleep(0.4)
    assert "planning" in slow.file.getvalue()
    assert "half of it" in slow.file.getvalue()
    assert pipe.file.getvalue() == ""


def test_a_bar_goes_when_the_work_fails(monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    out = terminal()

    def fail():
        with console.progress(out, "planning") as advance:
            advance(0.1, "")
            time.sleep(0.1)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    # The cursor is given back.
    assert out.file.getvalue().rstrip().endswith(("\x1b[?25h", "\x1b[2K"))


def test_the_command_shows_its_search_on_a_terminal(monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    out = terminal()
    monkeypatch.setattr(console, "console", lambda json_output=False: out)
    done = CliRunner().invoke(app, [*SMALL[:3], "64", *SMALL[4:6], "--global-batch", "256", "--top", "1"])
    assert done.exit_code == 0, done.output
    assert "planning" in out.file.getvalue()
    assert re.search(r"of [\d.]+ [kM] plans, bf16", out.file.getvalue())


def test_a_large_file_says_first_how_large_it_will_be(tmp_path, monkeypatch):
    path = tmp_path / "all.csv"
    done = CliRunner().invoke(app, [*SMALL, "--all", str(path), "--top", "1"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    first = done.stdout.splitlines()[0]
    count, size, unit = re.search(r"note: ([\d,]+) plans go to .*, about ([\d.]+) ([KM]iB)", first).groups()
    rows = path.read_text().count("\n") - 1
    assert int(count.replace(",", "")) == rows
    assert float(size) * {"KiB": 2**10, "MiB": 2**20}[unit] == pytest.approx(path.stat().st_size, rel=0.1)
    assert f"all {rows:,} legal plans written to" in done.stdout.replace("\n", "")


def test_a_file_that_the_disk_has_no_room_for_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    path = tmp_path / "all.csv"
    done = CliRunner().invoke(app, [*SMALL, "--all", str(path)])
    assert isinstance(done.exception, EnvironmentFailure)
    assert done.exception.exit_code == 5
    assert re.search(r"--all .*: about [\d.]+ KiB are needed and [\d.]+ KiB are free", str(done.exception))
    assert list(tmp_path.iterdir()) == []
