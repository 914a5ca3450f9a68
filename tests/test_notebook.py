"""The notebook that is shipped runs from its first cell to its last, and shows what `planner.plan` finds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from planner.prediction import PlanFile
from profiles import artifacts
from profiles.units import format_seconds

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent
PLOTLY = "application/vnd.plotly.v1+json"
NOTEBOOKS = sorted(ROOT.glob("planner/notebooks/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_kept_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def outputs(folder) -> list[str]:
    """What each cell of the first plan's notebook shows, HTML where there is some."""
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "planner" / "notebooks" / "first_plan.ipynb", as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("TRAINWRIGHT_HOME", str(folder / "home"))
        where = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    return [shown(cell) for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell) -> str:
    assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.outputs
    data = [output.data for output in cell.outputs if "data" in output]
    texts = [output.text for output in cell.outputs if "text" in output]
    pictures = [json.dumps(one[PLOTLY]) for one in data if PLOTLY in one]
    return "".join([*texts, *pictures, *(one.get("text/html", one.get("text/plain", "")) for one in data)])


def test_every_cell_shows_what_the_saved_plan_says(outputs, folder):
    file = artifacts.read(folder / "plan.json", "plan", PlanFile)
    best = file.candidates[0]
    table, choice, parts, frame, why_not, sensitivity, cost, scatter, page, saved = outputs
    assert f"<td>{best.plan.id}</td><td>{format_seconds(best.prediction.step_seconds)}</td>" in table
    assert choice.splitlines()[0] == best.plan.id
    assert f"{best.prediction.peak_bytes / 2**30:.1f} GiB" in choice
    listed = [float(number) for number in re.findall(r"^\w+ +([\d.e-]+)$", parts, flags=re.MULTILINE)]
    assert sum(listed) == pytest.approx(best.prediction.step_seconds, rel=1e-4)
    assert all(candidate.plan.id in frame for candidate in file.candidates[:10])
    behind = re.match(r".*\btp8\b.*: ([\d.]+) s a step, \+[\d.]+%\n", why_not)
    differences = [float(number) for number in re.findall(r"^\w+ +(-?[\d.e-]+)$", why_not, flags=re.MULTILINE)]
    assert sum(differences) == pytest.approx(float(behind.group(1)) - best.prediction.step_seconds, abs=0.01)
    assert "half the network bandwidth" in sensitivity
    # A trillion tokens at the plan's rate, on 16 devices at 2.50 dollars an hour; failures and checkpoints take more.
    hours = 1e12 / best.prediction.tokens_per_second / 3600 * 16
    dollars = float(re.search(r"([\d,]+) dollars", cost).group(1).replace(",", ""))
    assert hours * 2.5 < dollars < 1.05 * hours * 2.5
    assert best.plan.id in scatter
    assert page.startswith("<iframe")
    assert best.plan.id in (folder / "plan.html").read_text()
    assert saved == ""
