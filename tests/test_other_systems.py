"""macOS and Windows, told from what they lack: what plans and compares runs there, what starts ranks says where."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from profiles.machines import cores
from profiles.machines.counters import read_counters
from tests.other_systems import POSIX_SIGNALS

ROOT = Path(__file__).parent.parent
RUN = ROOT / "tests" / "golden" / "llama-26m_epyc_2_2026-11-23.run.json"
# What torch and transformers choose for their system while they are loaded.
TRACING = ("urllib.request", "torch", "transformers.modeling_utils", "torch.distributed.elastic.multiprocessing")
PLAN = ("plan", "--model", "gpt2-small", "--gpus", "2", "--device", "t4", "--global-batch", "8", "--top", "1")


def run_on(system: str, command: str, *arguments: object, libraries=()) -> subprocess.CompletedProcess:
    """A command as its console script starts it, on another system."""
    argv = [command, *map(str, arguments)]
    code = (
        f"import sys; from tests.other_systems import pretend; pretend({system!r}, *{libraries!r}); "
        f"sys.argv = {argv!r}; from profiles.terminal import entries; entries.{command}()"
    )
    variables = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | variables)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_plans_are_the_same_as_on_linux(system, tmp_path):
    said = run_on(system, *PLAN, "-o", tmp_path / "plan.json")
    assert said.returncode == 0, said.stderr
    assert said.stdout == run_on("linux", *PLAN, "-o", tmp_path / "plan.json").stdout


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_runs_are_compared(system, tmp_path):
    said = run_on(system, "compare", RUN, "-o", tmp_path / "report.html", libraries=("pandas", "plotly"))
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("profile", ("machine",)), ("execute", ("plan.json",)), ("execute", ("plan.json", "--check"))],
)
def test_windows_starts_no_ranks_and_says_where_they_start(command, arguments):
    said = run_on("win32", command, *arguments)
    assert (said.returncode, said.stdout) == (5, "")
    assert said.stderr == (
        "error: ranks are started on Linux and macOS, not on Windows: run this under WSL 2; `plan`, `profile model` "
        "and `compare` run here\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_models_are_traced(system, tmp_path):
    said = run_on(system, "profile", "model", "llama-26m", "-o", tmp_path / "model.json", libraries=TRACING)
    assert said.returncode == 0, said.stderr
    assert "26 M parameters" in said.stdout


def test_cores_are_all_that_there_are_where_the_system_gives_none(monkeypatch):
    assert set(cores.usable_cores()) == os.sched_getaffinity(0)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores.usable_cores() == (0, 1, 2)
    cores.stay_on({0})


def test_own_seconds_are_counted_without_the_module_of_unix(monkeypatch):
    before = read_counters((0,)).own_seconds
    monkeypatch.setitem(sys.modules, "resource", None)
    after = read_counters((0,)).own_seconds
    # To two ticks of the coarser clock.
    assert after == pytest.approx(before, abs=0.05)


def test_signals_that_a_system_lacks_are_asked_of_none(tmp_path):
    code = (
        "import signal; [delattr(signal, name) for name in {!r} if hasattr(signal, name)];"
        "from profiles.ranks.signals import STOPPING; print([int(one) for one in STOPPING])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code.format(POSIX_SIGNALS)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert said.stdout.strip() == str([int(signal.SIGTERM)])
