"""Seconds of encoding and decoding gradients on a machine that was measured, and in how many messages they go."""

from __future__ import annotations

import numpy as np

from planner.cost.measured.operators import find_curve
from profiles.codecs.codec import BUCKET_BYTES, GRADIENT_BYTES, Codec
from profiles.laws.curves import kernel_seconds
from profiles.machines.profile import MachineProfile
from profiles.models.transformer import Array


def codec_seconds(machine: MachineProfile, used: Codec, num_parameters: Array, num_ranks: Array) -> Array:
    """Encoding and decoding gradients of so many parameters; nothing hides it, on the device that computes."""
    if not used.lossy:
        return np.zeros_like(num_parameters)
    count = num_buckets(num_parameters, used.is_bucketed)
    num_bytes = GRADIENT_BYTES * num_parameters / count

    def seconds(name: str) -> Array:
        return kernel_seconds(find_curve(machine, "codec", name, "fp32"), 0.0, num_bytes, [num_bytes])

    of_one = seconds(used.name)
    if used.gathered:
        of_one = of_one + num_ranks * seconds(f"{used.name} decode")
    return np.asarray(count * of_one)


def num_buckets(num_parameters: Array, is_bucketed: bool) -> Array:
    """How many messages DDP makes of the gradients of so many parameters."""
    needed = np.ceil(GRADIENT_BYTES * num_parameters / BUCKET_BYTES)
    return np.maximum(1.0, needed) if is_bucketed else np.ones_like(num_parameters)
