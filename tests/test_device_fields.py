"""Every field of a device that the laws read changes some price, and a better device never makes a plan slower."""

from dataclasses import fields, replace

import numpy as np
import pytest

from planner.space.explore import Space, explore
from planner.space.layouts import Options
from planner.space.question import setting
from profiles.machines.devices import Device, load_device
from tests.test_space import CONFIGS, sizes_of

# Of little memory, as its host, so that some plans do not fit.
DEVICE = replace(load_device("h100-sxm"), memory_gib=6.0, host_memory_gb=4.0)
OPTIONS = Options(schedules=("1f1b", "interleaved-1f1b"))
# Less of these is better; of all other numbers, more.
COSTS = ("latency", "slowdown", "launch", "price")
READ: set[str] = set()


class Watched(Device):
    """A device that notes which of its fields are read."""

    def __getattribute__(self, name: str) -> object:
        if name in FIELDS:
            READ.add(name)
        return object.__getattribute__(self, name)


FIELDS = {field.name for field in fields(Device)}


def space_of(device: Device, name: str = "") -> Space:
    at = setting(sizes_of("dense", CONFIGS["dense"]), device, 16, 48, 2048)
    if name == "vector_tflops":
        # What batched products of rows that cannot be loaded in vectors take.
        odd = CONFIGS["dense"] | {"num_attention_heads": 20, "num_key_value_heads": 20, "head_dim": 100}
        at = replace(at, model=sizes_of("odd", odd), attention_kernel="unfused")
    return explore(at, OPTIONS)


def read_fields() -> list[str]:
    READ.clear()
    space_of(Watched(**{name: getattr(DEVICE, name) for name in FIELDS}))
    return sorted(READ)


def changed(name: str, factor: float) -> Device:
    """The device with one field so many times better; a flag or a kind is another one."""
    value = getattr(DEVICE, name)
    factor = 1 / factor if any(word in name for word in COSTS) else factor
    if isinstance(value, bool):
        return replace(DEVICE, **{name: not value})
    if isinstance(value, str):
        return replace(DEVICE, **{name: "ampere"})
    if isinstance(value, dict):
        return replace(DEVICE, **{name: {key: factor * number for key, number in value.items()}})
    return replace(DEVICE, **{name: type(value)(factor * value)})


def totals(space: Space) -> tuple[float, float, int]:
    """The best step, all of the best steps of each layout and schedule together, and how many plans fit."""
    return float(space.best.step_seconds[0]), float(np.sum(space.best.step_seconds)), space.accepted


BEFORE = totals(space_of(DEVICE))


@pytest.mark.parametrize("name", read_fields())
def test_a_changed_field_is_noticed(name: str) -> None:
    better, worse = totals(space_of(changed(name, 2), name)), totals(space_of(changed(name, 0.5), name))
    before = totals(space_of(DEVICE, name)) if name == "vector_tflops" else BEFORE
    assert better != before or worse != before, f"{name} is read and changes nothing"
    if name not in ("generation", "in_switch", "num_multiprocessors"):  # of these, more is not better
        assert better[0] <= before[0] * (1 + 1e-9), f"a better {name} made the best plan slower"
        assert worse[0] >= before[0] * (1 - 1e-9), f"a worse {name} made the best plan faster"


def test_the_fields_of_every_law_are_read() -> None:
    assert {"peak_tflops", "achievable_tflops", "memory_gb_per_second", "memory_gib", "link_gb_per_second",
            "network_gb_per_second", "generation"} <= set(read_fields())  # fmt: skip


def test_a_device_that_is_in_no_catalogue_has_a_price() -> None:
    assert totals(space_of(replace(DEVICE, name="my-own-gpu"))) == BEFORE
