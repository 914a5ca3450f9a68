"""Standard output that is closed, full, left by its reader, or unable to encode a character; and other locales."""

import errno
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from profiles import artifacts
from profiles.errors import EnvironmentFailure
from profiles.terminal import console
from profiles.terminal.streams import Stream, standard_streams
from tests.report_builders import demo_run_file

# Characters are what the locale says, and files are opened as it says where the program does not.
ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
PLAN = "-m planner --model llama-3.2-1b --gpus 2 --device h100-sxm"


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in which `python` is this interpreter."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'python() {{ "{sys.executable}" "$@"; }}; {command}'],
        capture_output=True, text=True, env={**os.environ, **variables}, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("redirected", "code", "sentence"),
    [
        (">&-", 5, "error: standard output is closed: redirect it to /dev/null if it is not wanted\n"),
        ("> /dev/full", 5, "error: cannot write to standard output: No space left on device\n"),
        ("--json > /dev/full", 5, "error: cannot write to standard output: No space left on device\n"),
        ("| true", 0, ""),
        ("--json 2>&- | head -c 1", 0, ""),
    ],
)
def test_output_that_cannot_be_written(redirected, code, sentence):
    done = shell(f"python {PLAN} {redirected}")
    assert done.returncode == code, done.stderr
    # With --json the words for people stand there before.
    assert done.stderr.endswith(sentence)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


class Broken(io.StringIO):
    """A stream that takes nothing from its second write on."""

    def __init__(self, error: int) -> None:
        super().__init__()
        self.error, self.num_writes = error, 0

    def write(self, text: str) -> int:
        self.num_writes += 1
        if self.num_writes > 1:
            raise OSError(self.error, os.strerror(self.error))
        return super().write(text)


def test_the_work_goes_on_without_its_reader():
    broken = Broken(errno.EPIPE)
    stream = Stream(broken, is_needed=True)
    for text in "abc":
        assert stream.write(text) == 1
    assert broken.getvalue() == "a"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EBADF])
def test_only_what_was_asked_for_is_missed(error):
    output, errors = Stream(Broken(error), is_needed=True), Stream(Broken(error), is_needed=False)
    for stream in (output, errors):
        stream.write("a")
    errors.write("b")
    with pytest.raises(EnvironmentFailure, match=f"cannot write to standard output: {os.strerror(error)}"):
        output.write("b")


def test_what_cannot_be_encoded_is_replaced(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    with standard_streams():
        console.Console(width=80).print("12 s ±8 % \udcff")
        console.print_json(json.dumps({"name": "±"}))
    assert written.getvalue() == b'12 s ?8 % ?\n{"name": "\\u00b1"}\n'


def test_a_tolerance_is_checked_though_nobody_reads(monkeypatch):
    """What a command ends with does not depend on who reads it."""

    def act() -> None:
        typer.echo("one line")
        console.print_json("another")
        raise SystemExit(4)

    app = typer.Typer(add_completion=False)
    app.command()(act)
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(sys, "stdout", Broken(errno.EPIPE))
    with pytest.raises(SystemExit) as ended:
        console.run(app)
    assert ended.value.code == 4


def test_files_are_the_same_in_every_locale(tmp_path: Path):
    file = demo_run_file()
    artifacts.write(tmp_path / "run.json", "run", replace(file, model_name="größe ±", notes=()))
    command = f"python -m reports {tmp_path}/run.json -o {tmp_path}/$NAME.html --json"
    usual = shell(command, NAME="usual", LC_ALL="C.UTF-8")
    ascii_only = shell(command, NAME="ascii", **ASCII)
    assert (usual.returncode, ascii_only.returncode) == (0, 0), ascii_only.stderr
    assert json.loads(usual.stdout) == json.loads(ascii_only.stdout)
    page = (tmp_path / "usual.html").read_bytes()
    assert "größe ±".encode() in page
    assert (tmp_path / "ascii.html").read_bytes() == page
