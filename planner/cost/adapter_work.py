"""What adapters beside frozen weights cost in a layer, and what frozen weights are spared."""

from __future__ import annotations

import numpy as np

from planner.cost.adapted import is_frozen, pairs_of
from planner.cost.element_passes import ElementPasses
from planner.cost.job import Jobs
from planner.cost.load import Load, load_of
from profiles.laws.kernels import Silicon, matmul_seconds
from profiles.models.operators import Phase
from profiles.models.transformer import Array

# Of a weight of a base in few bits as it is computed with.
WIDE_BYTES = 2.0
# Linears that read what a layer is given.
FIRST_LINEARS = ("qkv", "q_down", "kv_down")


def adapter_load(jobs: Jobs, silicon: Silicon, passes: ElementPasses, kind: str, phase: Phase) -> Load:
    """Two thin products beside each adapted linear of a layer, and what is passed to go through them and back.

    Model: backward makes gradients of both matrices and of both inputs.
    """
    load = load_of(jobs.tokens)
    for pair in pairs_of(jobs, kind):
        tokens, rank = np.where(pair.rank > 0, jobs.tokens, 0.0), pair.rank
        seconds = of_weights = np.zeros(len(jobs))
        for inputs, outputs in ((pair.inputs, rank), (rank, pair.outputs)):
            if phase == "forward":
                seconds = seconds + matmul_seconds(tokens, outputs, inputs, "TN", silicon)
            else:
                seconds = seconds + matmul_seconds(tokens, inputs, outputs, "NN", silicon)
                of_weights = of_weights + matmul_seconds(outputs, inputs, tokens, "NT", silicon)
        sides = passes.of("adapter_inputs", phase) * pair.inputs + passes.of("adapter_outputs", phase) * pair.outputs
        load = load + load_of(
            tokens,
            matmul_seconds=seconds + of_weights,
            weight_seconds=of_weights,
            element_bytes=tokens * sides * silicon.element_bytes,
        )
    return load


def spared_load(jobs: Jobs, silicon: Silicon) -> Load:
    """What the first layer of a frozen model is spared, as a load below 0: its first linears' input gradients.

    Model: nothing before them is trained, so that nobody asks for these. Of a layer whose first adapter comes later
    more is spared, which is ignored.
    """
    seconds, frozen = np.zeros(len(jobs)), is_frozen(jobs)
    for name, inputs, outputs, split in jobs.model.attention_linears if np.any(frozen) else ():
        if name in FIRST_LINEARS:
            columns = outputs / np.where(split == "column", jobs.tensor, 1.0)
            seconds = seconds + matmul_seconds(jobs.tokens, inputs, columns, "NN", silicon)
    return load_of(seconds, matmul_seconds=np.where(frozen, -seconds, 0.0))


def unpacked_bytes(jobs: Jobs) -> Array:
    """Bytes that pass to widen a weight of a frozen base in few bits: read as it is stored, written in 16 bits."""
    stored = jobs.adapters.read(lambda one: one.base_bytes)
    return np.where(stored > 0, stored + WIDE_BYTES, 0.0)
