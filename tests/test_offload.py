"""Offloading: every byte that a device frees crosses the link to its host and must fit there, by hand and in spaces."""

from dataclasses import replace

import numpy as np
import pytest

from planner.cost.factors import expected
from planner.cost.ingredients import ingredients_of
from planner.cost.job import Jobs
from planner.cost.measured.machine import device_of
from planner.cost.memory.footprint import footprint
from planner.cost.memory.peak import offloaded_bytes
from planner.cost.once import offload_seconds, offloaded_activations, optimizer_parameters, optimizer_seconds
from planner.schedules.laws import WAITING_SHARE
from planner.space.answers import no_plan
from planner.space.block import block, step_seconds
from planner.space.block_memory import host_bytes
from planner.space.explore import NO_ROOM_ON_HOST, Place, Space, explore
from planner.space.layouts import Options, legal_layouts
from planner.space.measured_setting import measured_setting
from planner.space.question import Setting, jobs_of
from planner.space.to_events import step_work
from planner.space.to_plans import best_places, plan_of
from profiles.library import load_model
from profiles.units import GB
from tests.machine_builders import machine
from tests.test_space import job_of, make

LAYERS, HIDDEN, SEQUENCE, COUNT = 12, 2048, 2048, 3
OFFLOADING = Options(offload=("activations",))


def on_host(at: Setting, **changes: float) -> Setting:
    return replace(at, device=replace(at.device, **changes))


def one_stage(**columns: object) -> Jobs:
    """A rank with the whole model, that recomputes every layer from its input."""
    own = {"num_microbatches": [float(COUNT)], "recompute": ["full"], **columns}
    return jobs_of(make(num_devices=1, batch=COUNT), **{name: np.array(values) for name, values in own.items()})


def test_activations_of_one_stage_by_hand() -> None:
    input_bytes = SEQUENCE * HIDDEN * 2
    plain, own = footprint(one_stage()), footprint(one_stage(activation_offload=[True]))
    # The layer at work and the one on its way stay.
    assert own.offloaded_bytes[0] == (LAYERS - 2) * input_bytes
    assert plain.offloaded_bytes[0] == 0
    freed = plain.parts["activations"] - own.parts["activations"]
    assert freed[0] == pytest.approx(own.offloaded_bytes[0], rel=1e-12)
    made = ingredients_of(one_stage(activation_offload=[True]))
    seconds = offload_seconds(made, optimizer_parameters(made))
    assert seconds[0] == pytest.approx(COUNT * LAYERS * input_bytes / 63e9, rel=1e-12)


def test_states_of_one_stage_by_hand() -> None:
    made = ingredients_of(one_stage(optimizer_offload=[True]))
    parameters = optimizer_parameters(made)
    assert parameters[0] == made.jobs.model.num_parameters[0]
    # A gradient of 4 bytes down, a weight of 4 up; states, gradient and a 16-bit weight through the host's memory.
    by_hand = parameters[0] * (8 / 63e9 + 30 / 614.4e9)
    assert offload_seconds(made, parameters)[0] == pytest.approx(by_hand, rel=1e-12)
    assert optimizer_seconds(made, expected().factors, parameters)[0] == 0
    eight = replace(made, jobs=replace(made.jobs, num_devices=np.array([16.0])))
    by_hand = parameters[0] * (8 / 63e9 + 8 * 30 / 614.4e9)
    assert offload_seconds(eight, parameters)[0] == pytest.approx(by_hand, rel=1e-12)
    at = make(num_devices=1, batch=COUNT)
    options = Options(offload=("optimizer",))
    room = 12 * float(parameters[0]) / GB
    assert explore(on_host(at, host_memory_gb=room * 1.001), options).rejected[NO_ROOM_ON_HOST] == 0
    short = explore(on_host(at, host_memory_gb=room * 0.999), options)
    assert short.accepted == 0
    assert short.rejected[NO_ROOM_ON_HOST] == short.rejected.total()
    assert NO_ROOM_ON_HOST in no_plan(short)
    assert "states alone take" not in no_plan(short)


def test_what_the_fullest_stage_keeps_crosses() -> None:
    kept = {"dense": np.array([10.0]), "routed": np.array([30.0])}
    counts = {"dense": [np.array([n]) for n in (2.0, 1.0, 0.0)], "routed": [np.array([n]) for n in (1.0, 3.0, 2.0)]}
    crossing = offloaded_activations(kept, counts, np.array([False, True]))
    assert crossing.tolist() == [100.0, 100.0 * (1 + WAITING_SHARE)]


def test_the_host_holds_what_the_device_does_not() -> None:
    found = offloaded_bytes(np.array([120.0, 20.0]), np.array([10.0, 10.0]), np.array([3.0, 1.0]))
    assert found.tolist() == [3 * 120 - 20, 0.0]


@pytest.mark.parametrize("config", ["dense", "experts"])
def test_a_plan_of_a_block_offloads_what_the_job_does_alone(config: str) -> None:
    space, random = explore(make(config), OFFLOADING), np.random.default_rng(2)
    for layout in random.integers(0, len(space.layouts), 40).tolist():
        choices = space.choices(layout)
        whole = np.flatnonzero((choices.share == 0) | (choices.share == 1))
        counts = len(choices.micro_batch), len(choices.schedules)
        place = (*(int(random.integers(count)) for count in counts), int(random.choice(whole)))
        job = job_of(space, layout, *place)
        alone = float(footprint(job).offloaded_bytes[0])
        own = block(space.tables, np.array([layout]), choices)
        assert host_bytes(own)[(0, *place)] == pytest.approx(alone, rel=1e-12)
        made = ingredients_of(job)
        crossing = float((offload_seconds(made, optimizer_parameters(made)) * made.host_link_rate)[0])
        assert alone <= crossing * (1 + 1e-12)


def test_a_simulated_step_has_the_same_seconds() -> None:
    """A slower link to the host adds as much to the simulated step as to the closed form, whatever is recomputed."""
    slow = {"host_gb_per_second": 6.3}
    spaces = [explore(at, OFFLOADING) for at in (make(num_devices=8), on_host(make(num_devices=8), **slow))]
    for layout in range(0, len(spaces[0].layouts), 12):
        choices = spaces[0].choices(layout)
        micro, schedule = map(int, np.argwhere(choices.legal)[-1][:2])
        some = np.flatnonzero((choices.share > 0) & (choices.share < 1))
        place = Place(layout, micro, schedule, int(some[len(some) // 2]))
        assert 0 < sum(plan_of(spaces[0], place).recompute_layers) < LAYERS
        cell = (0, place.micro_batch, place.schedule, place.recompute)
        blocks = [block(space.tables, np.array([place.layout]), space.choices(place.layout)) for space in spaces]
        fast, long = (float(step_seconds(own)[cell]) for own in blocks)
        before, after = (step_work(space, place).optimizer_seconds[0] for space in spaces)
        assert after - before == pytest.approx(long - fast, rel=1e-6)
        assert after > before


def test_more_memory_of_the_host_never_gives_fewer_plans() -> None:
    at, accepted = make(num_devices=8), []
    for size in (0.01, 0.5, 2.0, 8.0, 64.0, 4096.0):
        space = explore(on_host(at, host_memory_gb=size), Options(schedules=("1f1b", "interleaved-1f1b")))
        assert space.generated == space.accepted + space.rejected.total()
        assert_all_fit(space)
        accepted.append(space.accepted)
    assert accepted == sorted(accepted)
    assert accepted[0] < accepted[2] < accepted[-1]
    assert space.rejected[NO_ROOM_ON_HOST] == 0


def assert_all_fit(space: Space) -> None:
    """Check that the host has room for every plan that is offered."""
    states = space.tables.shared.offloaded_states[space.best.layout]
    assert (states <= space.at.host_memory_bytes).all()
    for place in best_places(space, 20):
        if space.layouts.activation_offload[place.layout]:
            own = block(space.tables, np.array([place.layout]), space.choices(place.layout))
            held = host_bytes(own)[0, place.micro_batch, place.schedule, place.recompute]
            assert held <= space.at.host_memory_bytes


def test_without_offload_the_host_does_not_matter() -> None:
    options = Options(offload=("none",))
    one, other = (explore(on_host(make(), host_memory_gb=size), options) for size in (1e-6, 128.0))
    assert one.accepted == other.accepted
    assert np.array_equal(one.best.step_seconds, other.best.step_seconds)


def test_cpus_have_nowhere_to_offload_to() -> None:
    target = machine()
    assert device_of(target).host_memory_gb == pytest.approx(target.memory_bytes / GB)
    at = measured_setting(target, load_model("llama-26m"), 4, 8, 128, "fp32")
    layouts, _ = legal_layouts(at, Options())
    assert not layouts.optimizer_offload.any()
    assert not layouts.activation_offload.any()
