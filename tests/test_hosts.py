"""Two emulated hosts: a run meets across them, and a slow cable changes what is best, predicted and measured."""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from executor.run.measurement import PlanRun, RunFile
from planner.command import app as plan_app
from planner.plans import Plan
from profiles import artifacts
from profiles.workloads.loading import load_workload
from tests.emulated_hosts import Hosts, can_emulate, two_hosts
from tests.plan_builders import LLAMA, write_plan_file

DATA = Plan(data_parallel=2, micro_batch_size=4)
BF16 = Plan(data_parallel=2, micro_batch_size=4, codec="bf16")
# What a prediction may be off by.
BAND = 0.15
STAGES = Plan(pipeline_parallel=2, schedule="1f1b", micro_batch_size=2, num_microbatches=4, stage_bounds=(0, 3))

pytestmark = pytest.mark.skipif(not can_emulate(), reason="network namespaces cannot be made here")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as made:
        yield made


def median_seconds(path: Path) -> dict[str, float]:
    return {
        run.plan.id: statistics.median(run.measurement.step_seconds)
        for run in artifacts.read(path, "run", RunFile).runs
    }


@pytest.mark.gloo
@pytest.mark.alone
def test_a_run_across_hosts_takes_as_long_as_its_bytes_do(hosts: Hosts, tmp_path: Path) -> None:
    plan, run = write_plan_file(tmp_path / "plan.json", DATA, BF16, STAGES), tmp_path / "run.json"
    hosts.throttle("20mbit")
    code, _, errors = hosts.torchrun("executor", str(plan), "--top", "3", "--steps", "5", "-o", str(run))
    assert code == 0, errors
    result = artifacts.read(run, "run", RunFile)
    assert [item.measurement.loss_check.status for item in result.runs] == ["passed", "passed", "passed"]
    seconds = median_seconds(run)
    # An all-reduce over two hosts sends all gradients once each way, and the cable is what takes time here: no run can
    # be faster than it, whatever else the machine does.
    wire = 4 * num_parameters() * 8 / 20e6
    assert 0.9 * wire < seconds[DATA.id] < 2 * wire
    assert 0.45 * wire < seconds[BF16.id] < seconds[DATA.id] - 0.3 * wire
    assert seconds[STAGES.id] < seconds[BF16.id]


def num_parameters() -> int:
    workload = load_workload(LLAMA)
    return sum(p.numel() for p in workload.build(0, len(workload.layers), seed=0).parameters())


def measured(hosts: Hosts, rate: str, folder: Path, top: int, steps: int) -> RunFile:
    """Profile, plan and execute across a cable of this speed, all with the commands."""
    hosts.throttle(rate)
    machine, plan, run = (folder / f"{name}-{rate or 'open'}.json" for name in ("machine", "plan", "run"))
    job = ("--gpus", "2", "--model", "llama-26m", "--sequence-length", "64")
    code, _, errors = hosts.torchrun("profiles", "machine", *job, "--precision", "fp32", "-o", str(machine))
    assert code == 0, errors
    assert {link["span"] for link in json.loads(machine.read_text())["links"]} == {"network"}
    done = CliRunner().invoke(plan_app, [*job, "--global-batch", "8", "--machine", str(machine), "-o", str(plan)])
    assert done.exit_code == 0, done.output
    code, _, errors = hosts.torchrun(
        "executor", str(plan), "--top", str(top), "--with-baseline", "--steps", str(steps), "-o", str(run)
    )
    assert code == 0, errors
    return artifacts.read(run, "run", RunFile)


def agree(runs: Sequence[PlanRun]) -> bool:
    """Whether plans predicted to differ by more than a band are measured in that order; nearer ones change places."""
    pairs = [(run.prediction.step_seconds, statistics.median(run.measurement.step_seconds)) for run in runs]
    return all(own[1] < other[1] for own in pairs for other in pairs if own[0] * (1 + BAND) < other[0])


@pytest.mark.gloo
@pytest.mark.alone
@pytest.mark.slow
# Over the slowest, plain data parallel takes ten seconds a step.
@pytest.mark.parametrize(("rate", "top", "steps"), [("", 9, 10), ("1gbit", 9, 10), ("100mbit", 3, 5)])
def test_a_slow_cable_changes_the_plan_and_the_run_agrees(
    hosts: Hosts, tmp_path: Path, rate: str, top: int, steps: int
) -> None:
    runs = measured(hosts, rate, tmp_path, top, steps).runs
    seconds = [statistics.median(run.measurement.step_seconds) for run in runs]
    (baseline,) = (run for run in runs if run.is_baseline)
    best = runs[0]
    assert seconds[0] <= min(seconds) * 1.1
    assert agree(runs)
    if rate == "1gbit":
        predicted = [run.prediction.step_seconds for run in runs]
        assert spearmanr(predicted, seconds).statistic >= 0.9
    # On an open cable nothing is compressed and nothing is cut; on a slow one something has to be.
    assert (best.plan.codec != "none" or best.plan.pipeline_parallel > 1) == bool(rate)
    if rate:
        assert seconds[0] < 0.7 * statistics.median(baseline.measurement.step_seconds)
        assert best.prediction.step_seconds == pytest.approx(seconds[0], rel=BAND)
        coded = next(run for run in runs if run.plan.codec != "none")
        coded_seconds = statistics.median(coded.measurement.step_seconds)
        assert coded_seconds < 0.7 * statistics.median(baseline.measurement.step_seconds)
        assert coded.prediction.step_seconds == pytest.approx(coded_seconds, rel=BAND)
