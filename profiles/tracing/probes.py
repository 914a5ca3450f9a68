"""The micro-batches and sample sizes at which a task is run to be traced."""

from __future__ import annotations

import math
from dataclasses import dataclass

from profiles.models.polynomials import Grid, grid
from profiles.workloads.task import Task

# Micro-batches where numbers grow in line with them, where some grow with their square, and where some grow in steps;
# with each, that of the run that is only looked at.
STRAIGHT, CURVED, STEPPED = (2, 3), (2, 3, 4), (8, 16)
CHECKED_BATCH = {STRAIGHT: 5, CURVED: 5, STEPPED: 12}
# Powers of the size that numbers grow with: of tokens up to the square, of an image's side that and its square.
POWERS = {"tokens": (0, 1, 2), "pixels": (0, 2, 4), "values": (0, 1, 2), "": (0,)}
# Sizes of the grid, between the least and the usual, and that of the run that is only looked at.
SHARES, CHECKED_SHARE = (1.0, 0.5, 0.75), 0.625
# The largest samples where runs take long: with real tensors, and where kernels are more the longer a sample is.
SMALL = {"tokens": 32, "pixels": 128, "values": 16_000, "": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """The sizes that are run: those of a grid, and one that its polynomials are held to.

    The first of the grid has the largest samples; `varies`: whether samples of several sizes are among them.
    """

    grid: Grid
    checked: tuple[int, int]
    varies: bool


def probes(task: Task, is_small: bool, varies: bool, batches: tuple[int, ...]) -> Probes | None:
    """The sizes to run a task at: of a grid, or of the usual samples alone unless the size `varies`.

    None where it cannot.
    """
    sizes = _sizes(task, _largest(task, is_small)) if varies else ()
    if varies and not sizes:
        return None
    if not varies:
        return Probes(grid=grid(batches, (task.size,), (0,)), checked=(CHECKED_BATCH[batches], task.size), varies=False)
    *apart, checked = sizes
    return Probes(grid=grid(batches, apart, POWERS[task.unit]), checked=(CHECKED_BATCH[batches], checked), varies=True)


def looks(task: Task) -> tuple[int, int] | None:
    """Two small sizes at which kernels may be told to be as many; None where samples have one size."""
    sizes = _sizes(task, _largest(task, True))
    return (sizes[0], sizes[1]) if sizes else None


def _largest(task: Task, is_small: bool) -> int:
    return min(task.size, max(SMALL[task.unit], task.least_size + 64)) if is_small else task.size


def _sizes(task: Task, largest: int) -> tuple[int, ...]:
    """Three sizes and one to look at; none where the model takes too few."""
    if task.is_fixed:
        return ()
    step = task.size_step
    least, most = math.ceil(task.least_size / step), largest // step
    counts = [max(1, least, round(least + (most - least) * share)) for share in (*SHARES, CHECKED_SHARE)]
    if len(set(counts[:3])) < 3:
        counts = [most + 2, most, most + 1, most + 3]
    if task.longest_size and max(counts) * step > task.longest_size:
        return ()
    return tuple(count * step for count in counts)
