"""`trainwright` leads to the four commands, and no command runs with packages that are not ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner.plans import Plan
from profiles.errors import UnknownNameError
from profiles.terminal.entries import COMMANDS
from profiles.terminal.umbrella import HELP, app
from tests.commands import APPS
from tests.plan_builders import write_plan_file

ROOT = Path(__file__).parent.parent
PACKAGES = tuple(COMMANDS.values())
# A command, started as its console script does.
SCRIPT = "import sys; sys.argv = {argv!r}; from profiles.terminal import entries; entries.{entry}()"


def run(argv, entry="trainwright", path=(ROOT,), flags=(), **variables):
    """A console script, with only `path` beside the libraries."""
    return subprocess.run(
        [sys.executable, *flags, "-c", SCRIPT.format(argv=list(argv), entry=entry)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))} | variables,
        cwd="/",
    )


def completed(words: str) -> list[str]:
    """What a shell would offer for the last of `words`."""
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_TRAINWRIGHT_COMPLETE": "complete_bash"}
    return run(["trainwright"], **variables).stdout.split()


def test_help_names_each_command_and_loads_none():
    code = "import atexit, sys; atexit.register(lambda: print(*[n for n in {!r} if n in sys.modules]));"
    heavy = ("torch", "numpy", "rich.table", "planner", "executor", "reports", "profiles.command", "importlib.metadata")
    said = subprocess.run(
        [sys.executable, "-c", code.format(heavy) + SCRIPT.format(argv=["trainwright", "--help"], entry="trainwright")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert said.returncode == 0, said.stderr
    *text, loaded = said.stdout.splitlines()
    assert loaded == ""
    assert [line.split()[0] for line in text[text.index("Commands:") + 1 :]] == list(APPS)
    assert set(HELP) == set(COMMANDS) == set(APPS)


@pytest.mark.parametrize(
    ("argv", "alone"),
    [(["plan", "--list", "schedules"], "plan"), (["compare", "none.json"], "compare"), (["execute", "-x"], "execute")],
)
def test_a_command_answers_as_it_does_alone(argv, alone):
    under, itself = run(["trainwright", *argv]), run(argv, entry=alone)
    assert (under.returncode, under.stdout) == (itself.returncode, itself.stdout)
    assert under.stderr.replace(f"trainwright {alone}", alone) == itself.stderr


def test_a_wrong_word_is_told_the_nearest_command():
    result = CliRunner().invoke(app, ["plna", "--help"])
    assert isinstance(result.exception, UnknownNameError)
    assert "unknown command 'plna': did you mean 'plan'?" in str(result.exception)


def test_the_version_is_that_of_the_commands():
    said = {CliRunner().invoke(one, ["--version"]).output for one in (app, *APPS.values())}
    assert len(said) == 1
    assert said.pop().startswith("trainwright ")


def test_a_shell_completes_commands_options_and_names():
    assert completed("trainwright p") == ["profile", "plan"]
    assert completed("trainwright plan --device h200-s") == ["h200-sxm"]
    assert completed("trainwright profile machine --overs") == ["--oversubscription"]
    assert completed("trainwright nothing --d") == []


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder in which Trainwright is installed, as its installer notes it."""
    folder = tmp_path / "site"
    rows = []
    for package in PACKAGES:
        (folder / package).mkdir(parents=True)
        for one in (ROOT / package).iterdir():
            if one.name in ("__init__.py", "command.py"):
                (folder / package / one.name).write_bytes(one.read_bytes())
                rows.append(f"{package}/{one.name},sha256=x,{one.stat().st_size}")
            elif one.name != "__pycache__":
                (folder / package / one.name).symlink_to(one)
    record = folder / "trainwright-0.2.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("\n".join([*rows, "trainwright-0.2.0.dist-info/RECORD,,"]) + "\n")
    (record.parent / "METADATA").write_text("Metadata-Version: 2.4\nName: trainwright\nVersion: 0.2.0\n")
    return folder


def install_other(folder: Path, package: str) -> None:
    """Another distribution that has a package of the same name."""
    (folder / package).mkdir(parents=True, exist_ok=True)
    (folder / package / "__init__.py").write_text("# Other tools.\n")
    record = folder / "other_tools-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text(f"{package}/__init__.py,,\nother_tools-1.0.dist-info/RECORD,,\n")
    (record.parent / "METADATA").write_text("Metadata-Version: 2.4\nName: other-tools\nVersion: 1.0\n")


def checked(site: Path, package: str, *before: Path) -> str:
    """What is said of the packages of `site`, where other folders come `before` it on the path."""
    code = f"from profiles.terminal.origins import check_packages as check; check({package!r}); print('ours')"
    path = os.pathsep.join(map(str, (*before, site)))
    said = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path}, cwd="/"
    )
    assert said.returncode == (0 if said.stdout else 5), said.stderr
    return said.stdout.strip() or said.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_what_was_installed_is_ours(site, package):
    assert checked(site, package) == "ours"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_that_another_distribution_overwrote_is_named_with_it(site, package):
    install_other(site, package)
    said = checked(site, "reports")
    assert said.count("\n") == 1
    assert f"`{package}` of Trainwright was overwritten by the distribution other-tools ({site / package}" in said


def test_a_package_whose_file_went_with_another_distribution_is_named(site):
    (site / "planner" / "__init__.py").unlink()
    assert f"`planner` of Trainwright is hidden by another package of that name ({site / 'planner'})" in checked(
        site, "executor"
    )
    assert checked(site, "profiles") == "ours"


def test_a_package_of_the_same_name_before_ours_is_named(site, tmp_path):
    install_other(tmp_path / "work", "executor")
    place = tmp_path / "work" / "executor" / "__init__.py"
    assert f"hidden by another package of that name by the distribution other-tools ({place})" in checked(
        site, "reports", tmp_path / "work"
    )
    # What a command does not import may be anybody's.
    assert checked(site, "planner", tmp_path / "work") == "ours"


@pytest.mark.parametrize("entry", ["plan", "trainwright"])
def test_a_command_that_lost_its_packages_ends_in_one_sentence(site, entry):
    install_other(site, "planner")
    argv = ["plan", "--help"] if entry == "plan" else ["trainwright", "plan", "--help"]
    said = run(argv, entry, path=[site])
    assert (said.returncode, said.stdout) == (5, "")
    assert said.stderr.startswith("error: the package `planner`")
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "missing"),
    [(["plan", "--help"], "typer"), (["execute", "plan.json"], "torch"), (["profile", "model", "llama-26m"], "torch")],
)
def test_a_library_that_is_missing_is_named(site, tmp_path, argv, missing):
    """Also one that a command loads late, after its options are read."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{missing!r}] = None")
    plan = write_plan_file(tmp_path / "plan.json", Plan())
    argv = [str(plan) if word == plan.name else word for word in argv]
    said = run(argv, argv[0], path=[tmp_path, site], TRAINWRIGHT_HOME=str(tmp_path))
    assert (said.returncode, said.stdout) == (5, "")
    wanted = f"error: the library `{missing}` is not installed: install it, or trainwright with all it needs\n"
    assert said.stderr == wanted
