"""Committed runs on real machines, predicted again from the machine profile of the same session: errors must not grow.

Each file pair in golden/ is what one `make demo` wrote, those of 2026-11-28 and -29 what `make numbers` did, without
time lines: MODEL_DEVICE_RANKS_DATE.machine.json and .run.json.
"""

import statistics
from pathlib import Path

import pytest

from executor.run.measurement import RunFile
from planner.prediction import Prediction
from planner.space.explore import Space, explore
from planner.space.layouts import Options
from planner.space.measured_setting import measured_setting
from profiles import artifacts
from profiles.library import load_model
from profiles.machines.profile import MachineProfile
from tests.plan_finder import predict

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name.removesuffix(".run.json") for path in GOLDEN.glob("*.run.json"))
# Tighter than the goals for such a machine (15 %), wider than what the README reports, so that growth shows.
MEDIAN_ERROR, MEMORY_ERROR, REGRET = 0.10, 0.10, 0.05


OPTIONS = Options(offload=("none",), vocab_parallel=(0, 1))


@pytest.fixture(scope="module", params=NAMES)
def session(request) -> tuple[RunFile, list[Prediction]]:
    run = artifacts.read(GOLDEN / f"{request.param}.run.json", "run", RunFile)
    machine = artifacts.read(GOLDEN / f"{request.param}.machine.json", "machine-profile", MachineProfile)
    model = load_model(run.model_name)
    sizes = run.environment.num_devices, run.global_batch_size, run.sequence_length
    spaces: dict[tuple[str, str], Space] = {}
    for item in run.runs:
        key = precision, codec = item.plan.precision, item.plan.codec
        if key not in spaces:
            spaces[key] = explore(measured_setting(machine, model, *sizes, precision, codec=codec), OPTIONS)
    return run, [predict(spaces[item.plan.precision, item.plan.codec], item.plan) for item in run.runs]


def _measured(run: RunFile) -> list[float]:
    return [statistics.median(item.measurement.step_seconds) for item in run.runs]


def test_there_are_at_least_six_plans_of_three_kinds(session):
    run, _ = session
    kinds = {
        tuple(d > 1 for d in (r.plan.data_parallel, r.plan.tensor_parallel, r.plan.pipeline_parallel)) for r in run.runs
    }
    assert len(run.runs) >= 6
    assert len(kinds) >= 3


def test_step_times(session):
    run, predictions = session
    errors = [abs(p.step_seconds / seconds - 1) for p, seconds in zip(predictions, _measured(run), strict=True)]
    assert statistics.median(errors) <= MEDIAN_ERROR


def test_the_first_choice_is_among_the_fastest(session):
    run, predictions = session
    measured = _measured(run)
    first = min(range(len(measured)), key=lambda i: predictions[i].step_seconds)
    assert measured[first] <= min(measured) * (1 + REGRET)


def test_peak_memory(session):
    run, predictions = session
    for item, prediction in zip(run.runs, predictions, strict=True):
        assert prediction.peak_bytes == pytest.approx(max(item.measurement.peak_bytes), rel=MEMORY_ERROR)


def test_losses_were_those_of_one_device(session):
    run, _ = session
    assert {item.measurement.loss_check.status for item in run.runs} <= {"passed", "exempt"}
