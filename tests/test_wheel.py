"""What is built to be installed: every file of the packages, nothing of the tests, and the same bytes anywhere."""

import os
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from profiles.terminal import entries

ROOT = Path(__file__).parent.parent
PACKAGES = tuple(entries.COMMANDS.values())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked(*folders: str) -> set[str]:
    """The files that git tracks and that are there."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout says which files belong to it")
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", *folders], capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def included(builder) -> set[str]:
    return {file.distribution_path for file in builder.recurse_included_files()}


def test_a_wheel_holds_every_file_of_the_packages_and_none_beside():
    names = included(WheelBuilder(str(ROOT)))
    assert tracked(*PACKAGES) - names == set()
    assert {name.split("/")[0] for name in names} == set(PACKAGES)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_sources_hold_what_the_tests_need():
    # Where a project is set up, checked and reviewed belongs to the repository alone.
    aside = (".ci/", ".github/", ".gitignore", ".dockerignore", ".pre-commit", "docker/", "Dockerfile")
    # pyproject.toml always goes with them, and is not counted.
    missing = tracked() - included(SdistBuilder(str(ROOT))) - {"pyproject.toml"}
    assert [name for name in missing if not name.startswith(aside)] == []


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> list[Path]:
    """Wheels built in two folders, of files with other times and rights."""
    built = []
    for place, mode in (("one", 0o644), ("other", 0o600)):
        folder = tmp_path_factory.mktemp(place)
        for name in tracked(*PACKAGES, "pyproject.toml", "README.md", "LICENSE", "NOTICE", ".gitignore"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
            (folder / name).chmod(mode)
            os.utime(folder / name, (mode * 10**6, mode * 10**6))
        built += WheelBuilder(str(folder)).build(directory=str(folder / "dist"), versions=["standard"])
    return [Path(path) for path in built]


def test_two_folders_build_the_same_bytes(wheels):
    assert wheels[0].name == wheels[1].name == f"trainwright-{PROJECT['version']}-py3-none-any.whl"
    assert wheels[0].read_bytes() == wheels[1].read_bytes()


def test_a_wheel_starts_the_commands_and_carries_its_licence(wheels):
    with zipfile.ZipFile(wheels[0]) as wheel:
        info = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
        scripts = wheel.read(info["entry_points.txt"]).decode()
    assert {"LICENSE", "NOTICE", "RECORD"} <= set(info)
    assert set(PROJECT["scripts"]) == {"trainwright", *entries.COMMANDS}
    for name, place in PROJECT["scripts"].items():
        assert f"{name} = {place}" in scripts
        assert callable(getattr(entries, place.rpartition(":")[2]))


def test_the_newest_changes_are_those_of_this_version():
    first = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert first.removeprefix("## ").split(",")[0] == PROJECT["version"]
