"""Goodput: which share of the time a long job trains, when devices fail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Shapes: those of the inputs, broadcast. `goodput_fraction` is training time over all time."""

    goodput_fraction: Array
    interval_seconds: Array
    job_failure_seconds: Array


def goodput(
    *,
    device_failure_seconds: ArrayLike,
    num_devices: ArrayLike,
    checkpoint_seconds: ArrayLike,
    restart_seconds: ArrayLike,
    interval_seconds: ArrayLike | None = None,
) -> Goodput:
    """Expected goodput at `interval_seconds` of training between checkpoints, or at the best interval.

    Model: devices fail independently after exponential times and any failure stops the job; it goes back to its last
    checkpoint and needs `restart_seconds`, in which it may fail again. `checkpoint_seconds` is how long training stands
    still for one. Source: Daly, A higher order estimate of the optimum checkpoint interval, 2006 (equation 20).
    Raises: InputError where a time or a count is not positive.
    """
    failure, count = np.asarray(device_failure_seconds, dtype=np.float64), np.asarray(num_devices, dtype=np.float64)
    checkpoint = np.asarray(checkpoint_seconds, dtype=np.float64)
    restart = np.asarray(restart_seconds, dtype=np.float64)
    if np.any(failure <= 0) or np.any(count < 1) or np.any(checkpoint <= 0) or np.any(restart < 0):
        raise InputError(
            "goodput needs a positive time between failures and per checkpoint, at least one device and a restart >= 0"
        )
    between = failure / count
    interval = best_interval_seconds(checkpoint, between) if interval_seconds is None else interval_seconds
    interval = np.asarray(interval, dtype=np.float64)
    if np.any(interval <= 0):
        raise InputError("goodput needs a positive interval between checkpoints")
    # Hopeless jobs, far more time to save than between failures, overflow to a goodput of 0.
    with np.errstate(over="ignore"):
        wall = between * np.exp(restart / between) * np.expm1((interval + checkpoint) / between)
    fraction, interval, between = np.broadcast_arrays(interval / wall, interval, between)
    return Goodput(goodput_fraction=fraction, interval_seconds=interval, job_failure_seconds=between)


def best_interval_seconds(checkpoint_seconds: ArrayLike, job_failure_seconds: ArrayLike) -> Array:
    """Seconds of training between two checkpoints that waste least.

    Model: the exact optimum of Daly's model, where (1 - t) exp(t + c) = 1 for interval t and checkpoint c in units of
    the time between failures; Young's sqrt(2 c) is its first term. Source: Young, 1974; Daly, 2006.
    """
    from scipy.special import lambertw

    between = np.asarray(job_failure_seconds, dtype=np.float64)
    relative = np.asarray(checkpoint_seconds, dtype=np.float64) / between
    # Below 1e-9 the function's argument is its branch point within rounding, and Young's term alone is exact.
    exact = 1 + lambertw(-np.exp(-1 - relative)).real
    return np.asarray(between * np.where(relative < 1e-9, np.sqrt(2 * relative), exact))
