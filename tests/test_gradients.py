"""What gradients cost where their exchange was timed: the timed case itself, and what is carried over from it."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from planner.measured.gradients import gradient_seconds
from planner.measured.stages import StageCosts
from planner.measured.table import PlanTable
from profiles.machines.profile import ExchangeTiming, MachineProfile
from tests.machine_builders import machine

WIDTH, COUNT = 1024, 8
PARAMETERS, SIDES, BACKWARD = float(COUNT * WIDTH**2), float(COUNT * 2 * WIDTH), 0.05
CASES = [("none", 0), ("bf16", 0), ("int8", 0), ("powersgd-1", 0), ("none", 2), ("none", 3)]


def timing(name: str, zero_stage: int, added: float, **changes: Any) -> ExchangeTiming:
    known = {
        "group_size": 2, "num_parameters": PARAMETERS, "matrix_sides": SIDES, "backward_seconds": BACKWARD,
        "spread_fraction": 0.05,
    }  # fmt: skip
    return ExchangeTiming(codec=name, zero_stage=zero_stage, added_seconds=added, **{**known, **changes})


def exchange(here: MachineProfile, name: str, zero_stage: int, times: float = 1.0) -> float:
    """Seconds that the exchange and its codec add to a step of two ranks, of `times` as many parameters as timed."""
    numbers = dict.fromkeys((field.name for field in fields(StageCosts)), 0.0) | {
        "num_parameters": times * PARAMETERS, "matrix_sides": times * SIDES,
        "forward_busy": BACKWARD / 2, "backward_busy": BACKWARD,
    }  # fmt: skip
    columns = dict.fromkeys((field.name for field in fields(PlanTable)), np.zeros(1, dtype=np.int64)) | {
        key: np.full(1, value) for key, value in (("data_parallel", 2), ("zero_stage", zero_stage))
    }
    columns |= {key: np.ones(1, dtype=np.int64) for key in ("tensor_parallel", "pipeline_parallel", "num_microbatches")}
    table = PlanTable(**{**columns, "codec_names": (name,), "precision": "fp32"})
    stages = StageCosts(**{key: np.full((1, 1), value) for key, value in numbers.items()})
    found = gradient_seconds(here, table, stages)
    return float(found.exposed[0] + found.codec[0])


@pytest.mark.parametrize(("name", "zero_stage"), CASES)
@pytest.mark.parametrize("slower", [0.8, 1.5])
def test_the_timed_case_takes_what_it_took(name: str, zero_stage: int, slower: float) -> None:
    added = slower * exchange(machine(), name, zero_stage)
    here = machine(exchange_timings=(timing("topk-1", 0, 9.0), timing(name, zero_stage, added)))
    assert exchange(here, name, zero_stage) == pytest.approx(added, rel=1e-9)


def test_what_ddp_is_off_by_grows_with_the_parameters() -> None:
    law = exchange(machine(), "none", 0)
    here = machine(exchange_timings=(timing("none", 0, law + 0.01),))
    assert exchange(here, "none", 0, 3.0) == pytest.approx(exchange(machine(), "none", 0, 3.0) + 0.03)


def test_zero_1_takes_what_ddp_is_off_by_where_it_was_not_timed_itself() -> None:
    here = machine(exchange_timings=(timing("none", 0, exchange(machine(), "none", 0) + 0.01),))
    assert exchange(here, "none", 1) == pytest.approx(exchange(machine(), "none", 1) + 0.01)


def test_what_fsdp_is_off_by_is_a_factor_whatever_it_reduces_in() -> None:
    law = exchange(machine(), "none", 3)
    here = machine(exchange_timings=(timing("none", 3, 2 * law),))
    for name in ("none", "bf16"):
        assert exchange(here, name, 3, 3.0) == pytest.approx(2 * exchange(machine(), name, 3, 3.0))


@pytest.mark.parametrize("changes", [{"spread_fraction": 0.9}, {"codec": "bf16"}, {"group_size": 16}])
def test_noise_and_what_is_not_alike_are_left_alone(changes: dict[str, Any]) -> None:
    own = timing(**{"name": changes.pop("codec", "none"), "zero_stage": 0, "added": 9.0, **changes})
    # Sixteen ranks lie on two nodes of eight, two on one.
    assert exchange(machine(exchange_timings=(own,)), "none", 0) == exchange(machine(), "none", 0)


@pytest.mark.parametrize(("name", "zero_stage"), CASES)
def test_nothing_is_gained_by_a_timing_below_nothing(name: str, zero_stage: int) -> None:
    here = machine(exchange_timings=(timing(name, zero_stage, -1.0),))
    assert exchange(here, name, zero_stage) == 0.0
