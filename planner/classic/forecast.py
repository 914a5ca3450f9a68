"""What rows of a table of trainings of any network would take in time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from planner.classic.bands import distance_of, words_of
from planner.classic.features import features_of
from planner.classic.lists import operator_list
from planner.classic.memory import allocated_bytes, card_bytes, counters
from planner.classic.step import Learned, load_learned, parts_of
from planner.classic.training import Training, read_training
from planner.published.cells import Refused
from planner.published.predict import Forecast
from profiles.errors import InputError
from profiles.units import GIB

# What decoding and augmenting real data by the host's processors yields per GPU, in images per second (assumed): eight
# processes of about 150, or DALI's of about twice as much with its share on the device. Source: NVIDIA's DALI pages,
# as remembered.
IMAGES_PER_SECOND = {"real": 1200.0, "dali": 2500.0}
IMAGE_NETWORKS, IMAGE_HEAD = ("classifier", "ssd"), "ForImageClassification"
BOUND = "data_loader: input pipeline of {:.0f} images a second from a GPU's share of the host, which binds (assumed)"
NEW = "outside of what was measured:"


def forecast_trainings(rows: Sequence[Mapping[str, str | None]]) -> list[Forecast]:
    """The forecast of every row, in order; a bad row is refused with a reason and stops no other."""
    result: list[Forecast] = []
    trainings: list[Training] = []
    places: list[int] = []
    for place, row in enumerate(rows):
        name = (row.get("row_id") or f"row {place + 1}").strip()
        try:
            training = read_training(row)
            operator_list(training.network, training.sizes, training.list_precision)
            operator_list(training.network, training.memory_sizes, training.list_precision)
        except (Refused, InputError) as reason:
            result.append(Forecast(row_id=name, refused=str(reason)))
            continue
        result.append(Forecast(row_id=name, assumptions=training.assumptions))
        trainings.append(training)
        places.append(place)
    if trainings:
        for place, made in zip(places, _forecasts(trainings, load_learned()), strict=True):
            result[place] = made
    return result


def input_seconds(training: Training) -> float:
    """Seconds that reading a step's images takes a GPU's share of the host; 0 where nothing is read or known."""
    rate = IMAGES_PER_SECOND.get(training.input_reader)
    family = training.network.partition(":")[0]
    if rate is None or not (family in IMAGE_NETWORKS or IMAGE_HEAD in training.network):
        return 0.0
    return training.micro_batch * training.accumulation / rate


def _forecasts(trainings: Sequence[Training], learned: Learned) -> list[Forecast]:
    parts = parts_of(features_of(trainings), learned)
    computed = np.sum(list(parts.values()), axis=0)
    reading = np.array([input_seconds(one) for one in trainings])
    seconds = np.maximum(computed, reading)
    parts = parts | {"input": seconds - computed}
    own, reserved, device = counters(allocated_bytes(trainings), card_bytes(trainings), learned)
    said = [
        (BOUND.format(one.micro_batch * one.accumulation / read),) if read > run else ()
        for one, read, run in zip(trainings, reading, computed, strict=True)
    ]
    words, known = [words_of(one) for one in trainings], frozenset(learned.known)
    wide = np.exp(np.array(learned.bands)[[distance_of(own, known) for own in words]])
    new = [tuple(f"{NEW} {word}" for word in own if word not in known) for own in words]
    wide_memory = np.exp(learned.memory_band)
    return [
        Forecast(
            row_id=one.row_id,
            assumptions=(*one.assumptions, *said[i], *new[i]),
            step_seconds=float(seconds[i]),
            low_seconds=float(seconds[i] / wide[i]),
            high_seconds=float(seconds[i] * wide[i]),
            allocated_bytes=float(own[i]),
            reserved_bytes=float(reserved[i]),
            device_bytes=float(device[i]),
            low_bytes=float(own[i] / wide_memory),
            high_bytes=float(device[i] * wide_memory),
            # Those who publish choose batches that just fit: only what is beyond doubt too much is said not to.
            fits=bool(own[i] <= one.device.memory_gib * GIB * np.sqrt(wide_memory)),
            seconds={name: float(values[i]) for name, values in parts.items()},
            bytes={},
        )
        for i, one in enumerate(trainings)
    ]
