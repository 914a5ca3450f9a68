"""Runs predicted from what others taught: without their family, software, devices, precision or mechanism.

A family is left out with the tables of kernels that its authors published, and of links on the same generation; a
generation of devices with all of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.cost.error_bands import distance, scales_at, scales_for, spread
from planner.cost.hardware import LOW_PRECISIONS, generations
from planner.cost.ingredients import Ingredients, ingredients_of
from planner.cost.job import Each, Jobs
from planner.published.constants import stack_names_of
from planner.published.learn import Fit, Runs, family_weights, learn, predict, total_seconds
from profiles.laws.collectives import LinkConstants
from profiles.laws.kernels import load_constants
from profiles.machines.devices import Generation, find_device
from profiles.models.transformer import Array, Flags

FAMILY, STACK, GENERATION, PRECISION, MECHANISM = "family", "stack", "generation", "precision", "mechanism"
# Whose kernel constants stand in for those of a generation without tables: its nearest relative in time.
STAND_INS: dict[str, Generation] = {
    "volta": "ampere", "ampere": "hopper", "hopper": "ampere", "blackwell": "hopper", "turing": "volta",
    "pascal": "volta", "ada": "ampere", "cdna2": "ampere", "cdna3": "ampere", "cdna4": "hopper",
}  # fmt: skip
# A number follows that names the publication.
ARCHIVE = "arxiv"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Runs predicted without what they are `part` of, by `kind` of leaving out; a run is there once for each.

    `spread` is that of the step time before scaling. Shapes: one entry per prediction; `run` is its place among runs.
    """

    kind: np.ndarray
    part: np.ndarray
    run: NDArray[np.int64]
    step_seconds: Array
    spread: Array
    distance: NDArray[np.int64]

    def take(self, index: NDArray[np.int64] | Flags) -> LeftOut:
        """The predictions at `index`."""
        return LeftOut(**{name: getattr(self, name)[index] for name in LeftOut.__slots__})

    def errors(self, runs: Runs) -> Array:
        """Logarithms of predicted over measured. Shapes: one entry per prediction."""
        return np.asarray(np.log(self.step_seconds / runs.step_seconds[self.run]))


def mechanisms(jobs: Jobs) -> dict[str, Flags]:
    """Which jobs use what other jobs do without."""
    return {
        "experts": jobs.model.is_moe,
        "ZeRO 3": jobs.zero_stage == 3,
        "pipelines": jobs.pipeline > 1,
        "low precision": np.isin(jobs.precision, LOW_PRECISIONS),
        "offload": jobs.optimizer_offload | jobs.activation_offload,
    }


def parts(runs: Runs) -> Iterator[tuple[str, str, Flags]]:
    """Everything that is left out in turn, by kind and name, where something is left to learn from."""
    jobs = runs.jobs
    words = {
        FAMILY: runs.family,
        STACK: stack_names_of(jobs),
        GENERATION: generations(jobs),
        PRECISION: jobs.precision,
    }
    flags = [(kind, str(name), own == name) for kind, own in words.items() for name in np.unique(own)]
    flags += [(MECHANISM, name, own) for name, own in mechanisms(jobs).items()]
    for kind, name, own in flags:
        if own.any() and not own.all():
            yield kind, name, own


def leave_out(runs: Runs, made: Ingredients, whole: Fit, kinds: tuple[str, ...] = ()) -> LeftOut:
    """Every run predicted without each thing that it is part of, of these `kinds`, or of all.

    `whole` is the fit to all runs, from which the others start.
    """
    found = []
    without: dict[frozenset[str], Ingredients] = {frozenset(): made}
    for kind, name, own in parts(runs):
        if kinds and kind not in kinds:
            continue
        learned = learn(runs, made, ~own, near=whole).learned
        tables = tables_left_with(runs, kind, name, own)
        if tables not in without:
            without[tables] = without_tables(made, tables)
        seconds = predict(without[tables], learned)
        count = int(own.sum())
        found.append(
            LeftOut(
                kind=np.full(count, kind),
                part=np.full(count, name),
                run=np.flatnonzero(own),
                step_seconds=total_seconds(seconds)[own],
                spread=spread(runs.jobs, seconds, learned)[own],
                distance=distance(runs.jobs, learned)[own],
            )
        )
    return LeftOut(**{name: np.concatenate([getattr(one, name) for one in found]) for name in LeftOut.__slots__})


def tables_left_with(runs: Runs, kind: str, name: str, own: Flags) -> frozenset[str]:
    """Generations whose kernel tables go with a part: its own, or those that its publishers measured most points of."""
    if kind == GENERATION:
        return frozenset({name} & load_constants().keys())
    if kind != FAMILY:
        return frozenset()
    said = " ".join(np.unique(runs.source[own])).lower()
    return frozenset(
        generation for generation, constants in load_constants().items() if _is_of(constants.source.lower(), said)
    )


def _is_of(source: str, publishers: str) -> bool:
    """Whether most points of a table's `source` ("28 points of CARD, WHOM; ...") are of whom the publishers name."""
    total = own = 0
    for entry in source.split(";"):
        match = re.match(r"\s*(\d+) points of [^,]*, *(.*)", entry)
        if match is None:
            continue
        name = match[2].removeprefix(ARCHIVE).split()[0]
        total += int(match[1])
        own += int(match[1]) * bool(re.search(rf"\b{re.escape(name)}\b", publishers))
    return own > total / 2


def without_tables(made: Ingredients, left_out: frozenset[str]) -> Ingredients:
    """The same jobs with kernels and messages priced as if nobody had measured any on the generations `left_out`.

    Their kernels are those of a relative; the links' law is fitted to the machines of others.
    """
    devices = tuple(
        replace(device, generation=STAND_INS[device.generation]) if device.generation in left_out else device
        for device in made.jobs.device.values
    )
    jobs = replace(made.jobs, device=Each(devices, made.jobs.device.index))
    return replace(ingredients_of(jobs, links_without(left_out)), jobs=made.jobs)


@lru_cache(maxsize=16)
def links_without(left_out: frozenset[str]) -> LinkConstants:
    """The constants of the law of links, fitted to machines of other generations than those `left_out`."""
    from profiles.laws.fit_collectives import fit, read_points

    points = read_points()
    names, place = np.unique(points.hardware, return_inverse=True)
    generations = [find_device(str(name).split()[0]).generation for name in names]
    return fit(points, ~np.isin(generations, list(left_out))[place])


def band_scales(found: LeftOut, runs: Runs, chosen: Flags | None = None) -> tuple[float, ...]:
    """What bands must be wider than the spread at each distance to hold what was left out, families weighted alike."""
    found = found if chosen is None else found.take(chosen)
    return scales_for(found.errors(runs), found.spread, found.distance, weights_by_distance(found, runs))


def weights_by_distance(found: LeftOut, runs: Runs) -> Array:
    """Weights that give every family the same say among predictions of one distance. Shapes: one per prediction."""
    weights = np.zeros(len(found.run))
    for number in np.unique(found.distance):
        own = found.distance == number
        weights[own] = family_weights(runs.family[found.run[own]])
    return weights


def is_covered(found: LeftOut, runs: Runs) -> Flags:
    """Which predictions lie within bands that were set without any of their family. Shapes: one per prediction."""
    family, errors = runs.family[found.run], np.abs(found.errors(runs))
    inside = np.zeros(len(errors), dtype=bool)
    for name in np.unique(family):
        own = family == name
        scales = band_scales(found, runs, ~own)
        inside[own] = errors[own] <= (found.spread * scales_at(scales, found.distance))[own]
    return inside
