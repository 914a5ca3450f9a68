"""What stands around the code says the same as the code: images, workflow, hooks, templates, citation."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
IMAGES = ("Dockerfile", "Dockerfile.cuda")


def read_yaml(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text())


def needed(name: str) -> SpecifierSet:
    """The versions of a library that may be installed."""
    return next(one.specifier for one in map(Requirement, PROJECT["dependencies"]) if one.name == name)


def instructions(image: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / image).read_text(), flags=re.MULTILINE))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_pinned_small_and_runs_as_no_root(image):
    steps = instructions(image)
    last_stage = steps[max(index for index, (word, _) in enumerate(steps) if word == "FROM") :]
    installs = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    assert installs
    assert all("--constraint constraints.txt" in rest for rest in installs)
    # Compilers, caches and sources stay in the stage that builds.
    assert not [rest for word, rest in last_stage if "pip" in rest]
    assert [rest.split()[0] for word, rest in last_stage if word == "COPY"] == ["--from=build"]
    users = [rest for word, rest in last_stage if word == "USER"]
    assert users
    assert users[-1].isdigit()
    assert int(users[-1]) > 0
    assert ("ENTRYPOINT", '["trainwright"]') in last_stage
    assert PROJECT["requires-python"] == ">=3.11"
    assert ("ARG", "PYTHON=3.12") in steps


def test_what_an_image_is_built_from_is_all_that_a_wheel_needs():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needs = {*wheel["packages"], *PROJECT["license-files"], PROJECT["readme"], "pyproject.toml", "constraints.txt"}
    assert kept == needs


def test_the_workflow_tries_every_python_and_torch_that_may_be_installed():
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    assert set(jobs) == {"lint", "test", "wheel"}
    matrix = jobs["test"]["strategy"]["matrix"]
    assert all(one in SpecifierSet(PROJECT["requires-python"]) for one in matrix["python"])
    assert all(one in needed("torch") for one in matrix["torch"])
    minors = [int(one.split(".")[1]) for one in matrix["torch"]]
    assert minors == list(range(minors[0], minors[-1] + 1))
    # One below and one above are not allowed: the matrix has both ends.
    assert f"2.{minors[0] - 1}.0" not in needed("torch")
    assert f"2.{minors[-1] + 1}.0" not in needed("torch")
    assert PINNED["torch"] in matrix["torch"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    commands = " ".join(str(step.get("run", "")) for job in jobs.values() for step in job["steps"])
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
    assert all((ROOT / one).exists() for one in re.findall(r"python (tests/\S+)", commands))


def test_hooks_run_what_lint_runs():
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    checks = [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in lint.splitlines()[1:]]
    assert [hook["entry"] for hook in hooks] == checks
    assert all(hook["language"] == "system" for hook in hooks)


def test_a_wrong_prediction_is_reported_with_its_run_file():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert set(forms) == {"wrong_prediction", "bug", "device", "config"}
    required = {
        part["id"]: part["attributes"]["description"]
        for part in forms["wrong_prediction"]["body"]
        if part.get("validations", {}).get("required") and "description" in part["attributes"]
    }
    assert "run.json" in required["run"]


def test_a_citation_has_the_version_and_licence_of_the_project():
    citation = read_yaml("CITATION.cff")
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_each_table_of_measurements_is_named_in_the_notice():
    notice = (ROOT / "NOTICE").read_text()
    tables = [path.name for path in (ROOT / "profiles" / "catalog" / "measured").glob("*.csv")]
    assert tables
    assert [name for name in tables if name not in notice] == []
