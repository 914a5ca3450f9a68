"""Contiguous layers to pipeline stages so that the slowest stage is as fast as it can be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from profiles.errors import PlanError

Array = NDArray[np.float64]
BISECTIONS = 48


def partition(layer_seconds: Array, num_stages: int) -> tuple[int, ...]:
    """The first layer of each stage, minimising the largest stage; every stage holds at least one layer.

    Model: bisection on the bound; a bound is met if filling stages greedily needs no more stages than there are.
    Shapes: seconds per layer in model order. Raises: PlanError where there are fewer layers than stages.
    """
    num_layers = len(layer_seconds)
    if num_stages > num_layers:
        raise PlanError(f"{num_stages} pipeline stages need at least as many layers, the model has only {num_layers}")
    sums = np.concatenate([[0.0], np.cumsum(layer_seconds)])
    low, high = float(max(layer_seconds.max(), sums[-1] / num_stages)), float(sums[-1])
    best = _fill(sums, num_stages, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        bounds = _fill(sums, num_stages, middle)
        if bounds is None:
            low = middle
        else:
            best, high = bounds, middle
    assert best is not None  # one stage may hold everything at the first bound
    return best


def _fill(sums: Array, num_stages: int, bound: float) -> tuple[int, ...] | None:
    """Stage starts that keep every stage within `bound`, each filled as far as later stages leave layers for it."""
    num_layers = len(sums) - 1
    starts = []
    start = 0
    for stage in range(num_stages):
        starts.append(start)
        stop = int(np.searchsorted(sums, sums[start] + bound * (1 + 1e-12), side="right")) - 1
        start = max(start + 1, min(stop, num_layers - (num_stages - stage - 1)))
        if sums[start] - sums[starts[-1]] > bound * (1 + 1e-9):
            return None
    return tuple(starts) if start == num_layers else None
