"""Bytes of a training at its peak: states of parameters, and what forward keeps and backward makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.classic.components import peak_bytes
from planner.classic.lists import operator_list
from planner.classic.step import Learned
from planner.classic.training import Training
from profiles.laws.kernels import Array
from profiles.units import GIB

# Bytes of optimizer state of a parameter; of a copy in 16 bits under mixed precision.
STATES = {
    "sgd": 4.0,
    "adam": 8.0,
    "adamw": 8.0,
    "lamb": 8.0,
    "rmsprop": 8.0,
    "lars": 4.0,
    "adam8bit": 2.0,
    "adafactor": 0.1,
}
USUAL_STATE, PARAMETER_BYTES, HALF_COPY = 8.0, 8.0, 2.0


def allocated_bytes(trainings: Sequence[Training]) -> Array:
    """Bytes of tensors at the peak: parameters and gradients in fp32, optimizer, and the step's own."""
    result = []
    for one in trainings:
        listed = operator_list(one.network, one.memory_sizes, one.list_precision)
        state = PARAMETER_BYTES + STATES.get(one.optimizer, USUAL_STATE)
        state += HALF_COPY if one.units == "half" else 0.0
        result.append(listed.num_parameters * state + peak_bytes(listed, one.micro_batch) * one.filled)
    return np.array(result)


def card_bytes(trainings: Sequence[Training]) -> Array:
    """Bytes of each training's device."""
    return np.array([one.device.memory_gib * GIB for one in trainings])


def counters(allocated: Array, card: Array, learned: Learned) -> tuple[Array, Array, Array]:
    """Bytes as torch's allocated and reserved counters and the driver show them.

    What is cached beside tensors is given back once the card is full: where they fit, no counter shows more than that.
    """
    own = allocated * learned.allocated_multiple
    context = learned.context_gib * GIB
    room = np.maximum(card - context, own)
    cached = np.minimum(np.maximum(allocated * learned.device_multiple, own), room)
    return own, np.sqrt(own * cached), cached + context
