"""Layers placed on the stages of the best plans: no split that fits is faster, and what is said of one is its own."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.place_layers import placeable, placed_footprint
from planner.space.predictions import predictions
from planner.space.question import setting
from planner.space.replay_best import fastest_bounds, in_order, replay_offsets
from planner.space.to_plans import best_places, jobs_at, plan_of
from profiles.library import load_sizes
from profiles.machines.devices import load_device

OPTIONS = Options(offload=("none",), schedules=("1f1b", "gpipe"))


def make(model="llama-3.1-8b", gpus=16, batch=64, device="h100-sxm", stack="trainwright"):
    return explore(setting(load_sizes(model), load_device(device), gpus, batch, 4096, stack), OPTIONS)


@pytest.fixture(scope="module")
def space():
    return in_order(make())


def test_placed_plans_fit_are_faster_and_are_predicted_as_they_are(space):
    assert space.placed
    even = replace(space, placed={})
    chosen = list(space.placed)
    rows = [best_places(space, len(space.best)).index(place) for place in chosen]
    closed = space.best.step_seconds[rows] - replay_offsets(space, chosen)
    assert (space.best.step_seconds[rows] < closed + replay_offsets(even, chosen)).all()
    for row, own, plain in zip(rows, predictions(space, chosen), predictions(even, chosen), strict=True):
        assert own.fits
        assert own.step_seconds == pytest.approx(float(space.best.step_seconds[row]), rel=1e-9)
        assert own.peak_bytes == pytest.approx(float(space.best.device_bytes[row]), rel=1e-9)
        assert sum(own.seconds.values()) == pytest.approx(own.step_seconds)
        assert sum(own.bytes_per_rank.values()) == pytest.approx(own.peak_bytes)
        assert len(own.stage_peak_bytes) == len(plain.stage_peak_bytes)
        # Bytes move between stages: layers are neither lost nor made.
        assert own.step_seconds < plain.step_seconds
    for place in chosen:
        plan_of(space, place).check(space.at.model.num_layers + 2)


@pytest.mark.parametrize(("model", "gpus"), [("llama-3.1-8b", 16), ("mixtral-8x7b", 64)])
def test_no_other_split_that_fits_is_faster(model, gpus):
    space = make(model, gpus)
    total = space.at.model.num_layers
    places = [place for place in best_places(space, 200) if space.layouts.pipeline[place.layout] in (2, 4)]
    places = [place for place in places if placeable(space, place)][:4]
    found = fastest_bounds(space, places)
    assert len(places) >= 2
    for place in places:
        stages, own = int(space.layouts.pipeline[place.layout]), []
        near = total // stages
        tried = range(max(1, near - 1), near + 3) if stages > 2 else range(1, total)
        for counts in itertools.product(tried, repeat=stages - 1):
            if sum(counts) < total:
                bounds = (0, *(int(start) + 1 for start in np.cumsum(counts)))
                other = replace(space, placed={place: bounds})
                if placed_footprint(other, [place], jobs_at(other, [place])).device_bytes[0] <= space.at.memory_bytes:
                    own.append((float(replay_offsets(other, [place])[0]), bounds))
        ours = replace(space, placed={place: found[place]} if place in found else {})
        step = float(replay_offsets(ours, [place])[0])
        least = min(seconds for seconds, _ in own)
        whole = float(space.best.step_seconds[best_places(space, 200).index(place)])
        assert (step - least) / whole < 0.005, (plan_of(space, place).id, found.get(place), min(own))


def test_software_that_splits_evenly_is_left_alone():
    space = in_order(make(stack="megatron-core"))
    assert not space.placed
