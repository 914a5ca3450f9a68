"""What was timed of a layer over what its kernels sum up to: at sizes that were timed, and between them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.cost.measured.operators import Sizes
from profiles.machines.profile import LayerTiming
from profiles.models.operators import PHASES, Phase
from profiles.models.transformer import Array


def timed_over_summed(
    timings: list[LayerTiming], phase: Phase, summed: Callable[[Sizes], Array], sizes: Sizes, is_task: bool
) -> Array:
    """By how much a layer takes longer at some sizes than its kernels, whose seconds are `summed`.

    Model: as at the timed size that is nearest. The layers of a task are timed at few micro-batches, between which its
    logarithm changes in line with that of the micro-batch.
    """
    if not timings:
        return np.ones_like(sizes.batch)
    timed = sizes_of(timings)
    measured = np.array([one.forward_seconds if phase == PHASES[0] else one.backward_seconds for one in timings])
    expected = summed(timed)
    ratios = np.where(expected > 0, measured / np.maximum(expected, 1e-300), 1.0)
    places, where = _place(sizes), _place(timed)
    distance = np.abs(places[:, None, :] - where[None, :, :]).sum(axis=2)
    nearest = np.argmin(distance, axis=1)
    if not is_task:
        return np.asarray(ratios[nearest])
    result = np.empty(len(nearest))
    for row, own in enumerate(nearest):
        # Those at the nearest sample size and degree.
        alike = np.flatnonzero((where[:, 1:] == where[own, 1:]).all(axis=1))
        order = alike[np.argsort(where[alike, 0])]
        # A layer that has no backward pass takes none at any size.
        result[row] = np.exp(np.interp(places[row, 0], where[order, 0], np.log(np.maximum(ratios[order], 1e-12))))
    return result


def sizes_of(timings: list[LayerTiming]) -> Sizes:
    """The sizes at which layers were timed."""
    batch, sequence, tensor = np.array(
        [(one.micro_batch_size, one.sequence_length, one.tensor_parallel) for one in timings], dtype=np.float64
    ).T
    one = np.ones_like(batch)
    return Sizes(batch=batch, sequence=sequence, tensor=tensor, context=one, spread=one)


def _place(sizes: Sizes) -> Array:
    # Another tensor degree is another set of shapes: prefer a timing of the same degree at another micro-batch.
    return np.stack([np.log(sizes.batch), np.log(sizes.sequence / sizes.context), 4 * np.log(sizes.tensor)], axis=1)
