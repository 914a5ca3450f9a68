"""Seconds of a GPU's recurrent layers: a product for all steps, then steps one after the other. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from profiles.artifacts import STRICT
from profiles.laws.kernels import Array, Silicon, blend, wave_flops

Pass = Literal["forward", "data_gradient", "weight_gradient"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentConstants:
    """What recurrent layers take.

    `fraction` of the best product's rate, `backward_fraction` of it in data gradients, `weight_fraction` in weights';
    `step_us` and `backward_step_us` of starting a step, `traffic_fraction` of memory bandwidth at which weights are
    read at every step, `depth`, `reuse` and `wave_share` as in KernelConstants, `overhead_us` once.
    """

    __pydantic_config__ = STRICT

    fraction: float
    backward_fraction: float
    weight_fraction: float
    step_us: float
    backward_step_us: float
    traffic_fraction: float
    depth: float
    reuse: float
    wave_share: float
    blend: float
    overhead_us: float
    source: str


def recurrent_seconds(
    which: Pass, samples: ArrayLike, time: ArrayLike, inputs: ArrayLike, units: ArrayLike, gates: ArrayLike,
    silicon: Silicon, constants: RecurrentConstants,
) -> Array:  # fmt: skip
    """Seconds of one layer in one direction over `time` steps.

    Model: inputs of all steps in one product, then at each step one of (samples, gates x units, units) that reads its
    weights; gradients of weights are one product over all steps.
    Shapes: all broadcast.
    Ignores: cells that stay on the chip, layers that run beside each other.
    """
    b, t, i, h, g = (np.asarray(one, dtype=np.float64) for one in (samples, time, inputs, units, gates))
    column = {name: np.asarray(getattr(constants, name)) for name in ("depth", "reuse", "wave_share")}
    peak = silicon.matmul_flops_per_second * silicon.achievable_fraction
    rows, one = g * h, np.ones(1)
    if which == "weight_gradient":
        work = wave_flops(rows, i + h, t * b, one, silicon, column)
        return np.asarray(constants.overhead_us * 1e-6 + work / (peak * constants.weight_fraction))
    share = constants.fraction if which == "forward" else constants.backward_fraction
    start = constants.step_us if which == "forward" else constants.backward_step_us
    ahead = wave_flops(t * b, rows, i, one, silicon, column) / (peak * share)
    size = (b, rows, h) if which == "forward" else (b, h, rows)
    busy = wave_flops(*size, one, silicon, column) / (peak * share)
    reading = silicon.element_bytes * rows * h / (silicon.memory_bytes_per_second * constants.traffic_fraction)
    step = start * 1e-6 + blend(busy, reading, np.asarray(constants.blend))
    return np.asarray(constants.overhead_us * 1e-6 + ahead + t * step)
