"""How wide bands of 90 % are: the farther a training is from all that taught, the wider."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from planner.classic.features import generation_of
from planner.classic.learn import family_weights, weighted_quantile
from planner.classic.training import Training
from profiles.laws.kernels import Array

BAND_SHARE = 0.9
# Things that nobody taught, of which bands tell no more apart; runs, families weighing alike, that a width needs: both
# assumed.
MOST_DISTANCE, FEWEST_RUNS = 2, 20.0

Words = tuple[str, ...]


def words_of(training: Training) -> Words:
    """What a training may have in common with others: its kind of device and units, of network, of software."""
    return (
        f"device {generation_of(training)} {training.units}",
        f"network {kind_of(training.network)}",
        f"software {training.stack}",
    )


def kind_of(network: str) -> str:
    """The kind of a network: its family, or the type that transformers knows it by."""
    family, _, text = network.partition(":")
    if family != "hf":
        return family
    return text.partition('"type": "')[2].partition('"')[0]


def distance_of(words: Words, known: Collection[str]) -> int:
    """How many things of a training nobody taught, the most that bands tell apart."""
    return min(sum(word not in known for word in words), MOST_DISTANCE)


def left_out_distances(words: Sequence[Words], families: np.ndarray) -> np.ndarray:
    """The distance of every run from the runs of all other families."""
    result = np.zeros(len(words), dtype=int)
    for family in np.unique(families):
        others = {word for own, name in zip(words, families, strict=True) if name != family for word in own}
        for place in np.flatnonzero(families == family):
            result[place] = distance_of(words[int(place)], others)
    return result


def half_widths(errors: Array, families: np.ndarray, distances: np.ndarray) -> tuple[float, ...]:
    """Half the width of a band of 90 %, in the logarithm, by distance: no narrower farther away."""
    size = np.abs(errors)
    widths = [weighted_quantile(size, families, BAND_SHARE)]
    for distance in range(MOST_DISTANCE + 1):
        own = distances == distance
        is_enough = bool(own.any()) and float((family_weights(families[own]) ** 2).sum()) >= FEWEST_RUNS
        width = weighted_quantile(size[own], families[own], BAND_SHARE) if is_enough else widths[-1]
        widths.append(width if distance == 0 else max(width, widths[-1]))
    return tuple(widths[1:])


def left_out_inside(errors: Array, families: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Whether every run is inside of the band that the other families' errors drew."""
    result = np.zeros(len(errors), dtype=bool)
    for family in np.unique(families):
        own = families == family
        widths = np.array(half_widths(errors[~own], families[~own], distances[~own]))
        result[own] = np.abs(errors[own]) <= widths[distances[own]]
    return result
