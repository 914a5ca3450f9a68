"""Bands of trainings of any network, and how well families that are left out are predicted."""

import csv

import numpy as np
import pytest

from planner.classic.bands import distance_of, half_widths, left_out_distances, left_out_inside, words_of
from planner.classic.features import features_of
from planner.classic.forecast import forecast_trainings
from planner.classic.learn import left_out_errors
from planner.classic.memory import counters
from planner.classic.step import load_learned
from planner.classic.training import read_training
from profiles.laws.kernel_tables import MEASURED
from profiles.units import GIB
from tests.test_trainings import RESNET


def test_bands_widen_with_what_nobody_taught():
    known, strange = read_training(RESNET), read_training(RESNET | {"gpu_type": "H100-SXM5-80GB", "stack": "mindspore"})
    learned = load_learned()
    assert distance_of(words_of(known), learned.known) == 0
    assert distance_of(words_of(strange), learned.known) == 2
    near, far = forecast_trainings([RESNET, RESNET | {"gpu_type": "H100-SXM5-80GB"}])
    assert far.high_seconds / far.low_seconds > near.high_seconds / near.low_seconds
    assert any("outside of what was measured: device hopper half" in text for text in far.assumptions)
    assert not any("outside of what was measured" in text for text in near.assumptions)


def test_widths_of_bands_are_quantiles_by_distance():
    families = np.repeat(np.array([f"family {place}" for place in range(8)]), 10)
    distances = np.tile(np.repeat([0, 1], 5), 8)
    errors = np.where(distances == 0, np.tile(np.linspace(0.1, 0.2, 10), 8), 0.5)
    assert half_widths(errors, families, distances) == pytest.approx((np.linspace(0.1, 0.2, 10)[4], 0.5, 0.5))
    inside = left_out_inside(np.where(families == "family 0", 2.0, errors), families, distances)
    assert inside.tolist() == (families != "family 0").tolist()
    words = [("device a", "network b"), ("device a", "network c")]
    assert left_out_distances(words, np.array(["one", "other"])).tolist() == [1, 1]


def test_a_cache_gives_back_what_the_card_has_not():
    """Rows of the largest batch show the card's memory, not what a roomy card would cache."""
    learned = load_learned()
    own, reserved, device = counters(np.array([10.0, 20.0, 40.0]) * GIB, np.full(3, 24 * GIB), learned)
    assert device[0] == pytest.approx((10 * learned.device_multiple + learned.context_gib) * GIB)
    assert device[1] == pytest.approx(24 * GIB, rel=0.12)
    assert device[2] == pytest.approx(own[2] + learned.context_gib * GIB)
    assert (own <= reserved).all()
    assert (reserved <= device).all()


@pytest.mark.slow
def test_families_that_are_left_out_are_predicted_by_the_others():
    """Of the sample that ships, each family of runs by what the others taught, in step time and in the band."""
    with (MEASURED / "trainings.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["step_time_s"]]
    trainings = [read_training(row) for row in rows]
    families = np.array([row["family"] for row in rows])
    groups = np.array([f"{row['family']} {one.network}" for row, one in zip(rows, trainings, strict=True)])
    seconds = np.array([float(row["step_time_s"]) for row in rows])
    errors = left_out_errors(features_of(trainings), seconds, families, groups, load_learned())
    distances = left_out_distances([words_of(one) for one in trainings], families)
    inside = left_out_inside(errors, families, distances)
    assert np.median(np.abs(np.expm1(errors))) < 0.25
    assert 0.85 < inside.mean() < 0.95
