"""A module is imported only where the command line names it; what a file says of it is a wish."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from executor.command import app as execute_app
from executor.run.prepare import RunOptions, prepare
from planner.command import app as plan_app
from profiles import artifacts
from profiles.command import app as profile_app
from profiles.errors import InputError
from profiles.library import load_model
from profiles.workloads.trust import named_modules
from tests.module_builders import GOOD, user_folder, write_module_plan

RUNNER = CliRunner()
# Leaves a trace of having been imported.
MARKED = f"{GOOD}open('imported', 'w').close()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with user_folder(tmp_path):
        yield tmp_path


def write_profile(folder: Path) -> Path:
    """A model profile that names mine:f, traced from the same layers by another name."""
    (folder / "other.py").write_text(GOOD)
    text = artifacts.dump("model-profile", load_model("other:f")).replace("other:f", "mine:f")
    (folder / "profile.json").write_text(text)
    return folder / "profile.json"


def refused(app: typer.Typer, *arguments: str) -> str:
    done = RUNNER.invoke(app, list(arguments))
    assert isinstance(done.exception, InputError), (done.output, done.exception)
    return str(done.exception)


@pytest.mark.parametrize("how", [[], ["--rehearse"], ["--emit", "slurm"]], ids=" ".join)
def test_a_plan_file_imports_nothing_unasked(folder: Path, how: list[str]) -> None:
    (folder / "mine.py").write_text(MARKED)
    path = write_module_plan(folder)
    words = refused(execute_app, str(path), *how)
    assert all(word in words for word in (str(path), "the module mine", "--trust-module mine"))
    assert not (folder / "imported").exists()
    # Nor where another module is allowed, or one that it is part of.
    assert "--trust-module mine" in refused(execute_app, str(path), *how, "--trust-module", "mine.part")


def test_a_plan_file_ends_no_process(folder: Path) -> None:
    assert "--trust-module os" in refused(execute_app, str(write_module_plan(folder, "os:abort")), "--rehearse")


def test_a_compressed_module_is_refused_before_anything_is_imported(folder: Path) -> None:
    (folder / "mine.py").write_text(MARKED)
    path = write_module_plan(folder)
    plan = json.loads(path.read_text())
    choice = {
        "recipe": {"name": "none", "method": "none"}, "plan": plan["candidates"][0]["plan"], "num_parameters": 1,
        "stored_bytes": 1.0, "step_seconds": 1.0, "peak_bytes": 1.0, "latency_seconds": 1.0, "risk": "none",
    }  # fmt: skip
    path.write_text(json.dumps(plan | {"compression": [choice]}))
    assert "mine:f is a module" in refused(execute_app, str(path), "--compress")
    assert not (folder / "imported").exists()


def test_a_model_profile_imports_nothing_unasked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine.py").write_text(MARKED)
    path = str(write_profile(folder))
    monkeypatch.setenv("TRAINWRIGHT_HOME", str(folder))
    plan = ("--model", path, "--gpus", "2", "--global-batch", "8", "--device", "h100-sxm", "--precision")
    asked = {
        plan_app: [*plan, "tf32"],
        profile_app: ["machine", "--model", path, "--precision", "tf32"],
    }
    for app, arguments in asked.items():
        words = refused(app, *arguments)
        assert all(word in words for word in (path, "the module mine", "--trust-module mine"))
    assert "--trust-module mine" in refused(profile_app, "model", path)
    # What the profile has needs no module.
    assert RUNNER.invoke(plan_app, [*plan, "bf16"]).exit_code == 0
    assert not (folder / "imported").exists()
    assert RUNNER.invoke(profile_app, ["model", path, "--trust-module", "mine"]).exit_code == 0
    assert (folder / "imported").exists()


def test_what_the_command_line_names_is_trusted(folder: Path) -> None:
    (folder / "mine.py").write_text(GOOD)
    assert named_modules("mine:f", "a.b:c", "gpt2-small", str(folder)) == ("mine", "a.b")
    assert load_model("mine:f").num_layers == 3
    path = write_module_plan(folder)
    assert prepare(path, RunOptions(steps=1, oversubscribe=True, trusted=("mine",))).payload["trusted"] == ["mine"]
    done = RUNNER.invoke(execute_app, [str(path), "--emit", "slurm", "--trust-module", "mine"])
    assert "--trust-module mine" in done.stdout


def test_the_current_folder_stands_in_for_nothing_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stringprep", raising=False)
    monkeypatch.delitem(sys.modules, "tabnanny", raising=False)
    (folder / "helper.py").write_text("VALUE = 1\n")
    (folder / "tabnanny.py").write_text("raise SystemExit('not the one of Python')\n")
    (folder / "mine.py").write_text(f"import helper, tabnanny\n{GOOD}")
    assert load_model("mine:f").num_layers == 3
    # But for what is named.
    (folder / "stringprep.py").write_text(GOOD)
    assert load_model("stringprep:f").num_layers == 3
