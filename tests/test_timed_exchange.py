"""What gradients cost where their exchange was timed: the timed case itself, and what is carried over from it."""

from typing import Any

import numpy as np
import pytest

from planner.cost.measured.machine import learned_of
from planner.cost.software_time import rules_of
from profiles.codecs.codec import GRADIENT_BYTES
from profiles.machines.profile import ExchangeTiming, MachineProfile
from tests.exchange_builders import MODEL, added_seconds, replicas, setting_on
from tests.machine_builders import machine

WIDTH, COUNT = 1024, 8
PARAMETERS, SIDES, BACKWARD = float(COUNT * WIDTH**2), float(COUNT * 2 * WIDTH), 0.05
CASES = [("none", 0), ("bf16", 0), ("int8", 0), ("none", 1), ("none", 2)]


def timing(name: str, zero_stage: int, added: float, **changes: Any) -> ExchangeTiming:
    known = {
        "group_size": 2, "num_parameters": PARAMETERS, "matrix_sides": SIDES, "backward_seconds": BACKWARD,
        "spread_fraction": 0.05,
    }  # fmt: skip
    return ExchangeTiming(codec=name, zero_stage=zero_stage, added_seconds=added, **{**known, **changes})


def exchange(here: MachineProfile, name: str, zero_stage: int, times: float = 1.0) -> float:
    return added_seconds(here, name, zero_stage, times * PARAMETERS, BACKWARD)


def gathered_seconds(here: MachineProfile) -> float:
    """What FSDP2 sends at stage 3 for one layer in both directions, the gathers twice."""
    at = setting_on(here)
    jobs = replicas(at, 3)
    assert at.source is not None
    own = at.source.sharded(jobs, rules_of(jobs, learned_of(here)), at.source.links(jobs))
    (kind,) = own.layer_gather
    return float((2 * own.layer_gather[kind] + own.layer_scatter[kind])[0])


@pytest.mark.parametrize(("name", "zero_stage"), CASES)
@pytest.mark.parametrize("slower", [0.8, 1.5])
def test_the_timed_case_takes_what_it_took(name: str, zero_stage: int, slower: float) -> None:
    added = slower * exchange(machine(), name, zero_stage)
    here = machine(exchange_timings=(timing("topk-1", 0, 9.0), timing(name, zero_stage, added)))
    assert exchange(here, name, zero_stage) == pytest.approx(added, rel=1e-3)


def test_what_ddp_is_off_by_grows_with_the_parameters() -> None:
    law = exchange(machine(), "none", 0)
    here = machine(exchange_timings=(timing("none", 0, law + 0.01),))
    assert exchange(here, "none", 0, 3.0) == pytest.approx(exchange(machine(), "none", 0, 3.0) + 0.03)


def test_zero_1_takes_what_ddp_is_off_by_where_it_was_not_timed_itself() -> None:
    here = machine(exchange_timings=(timing("none", 0, exchange(machine(), "none", 0) + 0.01),))
    assert exchange(here, "none", 1) == pytest.approx(exchange(machine(), "none", 1) + 0.01)


def test_weights_take_what_they_took_more_than_the_law_with_plain_gradients() -> None:
    laws = {case: exchange(machine(), *case) for case in [("int8", 0), ("int8", 1), ("none", 0), ("none", 1)]}
    off = {("int8", 0): 0.01, ("none", 0): 0.02, ("none", 1): 0.05}
    here = machine(exchange_timings=tuple(timing(*case, laws[case] + added) for case, added in off.items()))
    assert exchange(here, "int8", 1) == pytest.approx(laws["int8", 1] + 0.01 + 0.03)


def test_weights_are_sent_alike_whatever_the_gradients_are_coded_in() -> None:
    plain, coded = (exchange(machine(), name, 1) - exchange(machine(), name, 0) for name in ("none", "powersgd-1"))
    assert plain == pytest.approx(coded)


def test_what_fsdp_is_off_by_is_a_factor_of_all_that_it_sends() -> None:
    # By hand: gradients scattered and weights gathered twice in two buckets, each copied in and out.
    whole, buckets = GRADIENT_BYTES * PARAMETERS, 2
    law = 3 * (buckets * 1e-4 + whole / 1e9) + 2 * 3 * whole / 1e10
    here = machine(exchange_timings=(timing("none", 3, 2 * law),))
    assert gathered_seconds(here) == pytest.approx(2 * gathered_seconds(machine()), rel=1e-9)


@pytest.mark.parametrize("changes", [{"spread_fraction": 0.9}, {"codec": "bf16"}, {"group_size": 16}])
def test_noise_and_what_is_not_alike_are_left_alone(changes: dict[str, Any]) -> None:
    own = timing(**{"name": changes.pop("codec", "none"), "zero_stage": 0, "added": 9.0, **changes})
    # Sixteen ranks lie on two nodes of eight, two on one.
    assert exchange(machine(exchange_timings=(own,)), "none", 0) == exchange(machine(), "none", 0)


@pytest.mark.parametrize(("name", "zero_stage"), CASES)
def test_nothing_is_gained_by_a_timing_below_nothing(name: str, zero_stage: int) -> None:
    here = machine(exchange_timings=(timing(name, zero_stage, -1.0),))
    coding = exchange(here, name, zero_stage)
    assert coding >= 0.0
    assert coding <= exchange(machine(), name, zero_stage)


def test_messages_of_compute_that_hides_them_leave_the_last_bucket() -> None:
    whole = GRADIENT_BYTES * PARAMETERS
    free = machine(latency=0.0)
    assert added_seconds(free, "none", 0, PARAMETERS, 100.0) == pytest.approx(whole / 1e9 / 2)
    assert added_seconds(free, "none", 0, PARAMETERS, 0.0) == pytest.approx(whole / 1e9)
    assert np.isfinite(added_seconds(free, "none", 0, 0.0, 1.0))


SMALL: dict[str, Any] = {"num_parameters": 96 * 2048.0, "matrix_sides": 96 * 96.0, "num_tensors": 96, "num_units": 8}


def test_fsdp_takes_what_every_small_tensor_took_beside_its_bytes() -> None:
    # By hand: of eight units gradients scattered and weights gathered twice, each copied in and out.
    whole = GRADIENT_BYTES * SMALL["num_parameters"]
    law = 3 * (8 * 1e-4 + whole / 1e9) + 2 * 3 * whole / 1e10
    here = machine(exchange_timings=(timing("none", 3, law + 0.0096, **SMALL),))
    (tensors,) = {layer.num_parameter_tensors for layer in MODEL.layers["fp32"] if layer.name == "block"}
    assert tensors > 2
    assert gathered_seconds(here) == pytest.approx(gathered_seconds(machine()) + tensors * 1e-4, rel=1e-9)
    # Beside what it is off by in large ones, by which messages are longer and tensors cost less.
    large = timing("none", 3, 2 * (3 * (2 * 1e-4 + GRADIENT_BYTES * PARAMETERS / 1e9) + 2.4e-9 * PARAMETERS))
    both = machine(exchange_timings=(large, timing("none", 3, 2 * law + 0.0096, **SMALL)))
    assert gathered_seconds(both) == pytest.approx(2 * gathered_seconds(machine()) + tensors * 1e-4, rel=1e-9)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_so_do_ddp_and_zero_2_for_all_tensors_of_the_model(zero_stage: int) -> None:
    tensors = sum(layer.num_parameter_tensors for layer in MODEL.each_layer("fp32"))
    plain, timed = machine(), machine(exchange_timings=_of_each(0.0096))
    share = PARAMETERS / MODEL.num_parameters
    added = exchange(timed, "none", zero_stage) - exchange(plain, "none", zero_stage)
    assert added == pytest.approx(tensors * share * 1e-4, rel=1e-6)


def _of_each(seconds: float) -> tuple[ExchangeTiming, ...]:
    """Timings of small tensors that took so many seconds more than the law says of their messages."""
    whole, latency, rate = GRADIENT_BYTES * SMALL["num_parameters"], 1e-4, 1e9
    sharded = 2 * (8 * latency + whole / rate) + 2 * 2 * whole / 1e10
    return (
        timing("none", 0, latency + whole / rate + seconds, **SMALL),
        timing("none", 2, sharded + seconds, **SMALL),
    )
