"""What each pipeline stage holds and costs: layer costs gathered by how many of each kind a stage has.

A group of plans shares its stage count, tensor degree and recomputation, hence its stage boundaries; within a group
everything is an array over (stage, plan).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.measured.layer_costs import LayerCosts
from planner.plans import is_recomputed
from planner.schedules.partition import partition
from profiles.models.profile import ModelProfile

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLayout:
    """Stage boundaries as counts. Shapes: `counts` and `recomputed` (stage, kind); `before` (stage, kind, kind).

    `before[stage, kind]` counts the layers of the stage up to the last one of `kind`: what is held when it runs.
    """

    bounds: tuple[int, ...]
    counts: Array
    recomputed: Array
    before: Array
    before_recomputed: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """Seconds and bytes of one micro-batch on each stage. Shapes: (stage, plan)."""

    forward: Array
    backward: Array
    recompute: Array
    host: Array
    tensor_comm: Array
    forward_busy: Array
    backward_busy: Array
    num_parameters: Array
    largest_layer: Array  # its parameters
    matrix_sides: Array
    num_vectors: Array
    kept_bytes: Array
    working_bytes: Array
    input_bytes: Array
    output_bytes: Array


def layout(model: ModelProfile, layer_seconds: Array, num_stages: int, recompute: bool) -> StageLayout:
    """Boundaries that balance `layer_seconds` (one per distinct kind) over `num_stages`."""
    structure = np.array(model.structure)
    bounds = partition(layer_seconds[structure], num_stages)
    return layout_of(model, bounds, recompute)


def layout_of(model: ModelProfile, bounds: tuple[int, ...], recompute: bool) -> StageLayout:
    """The layout of given boundaries."""
    num_kinds = max(model.structure) + 1
    shape = (len(bounds), num_kinds)
    counts, recomputed = np.zeros(shape), np.zeros(shape)
    before, before_recomputed = np.zeros((*shape, num_kinds)), np.zeros((*shape, num_kinds))
    for stage, (start, stop) in enumerate(zip(bounds, (*bounds[1:], model.num_layers), strict=True)):
        for position in range(start, stop):
            kind = model.structure[position]
            counts[stage, kind] += 1
            recomputed[stage, kind] += recompute and is_recomputed(position, model.num_layers)
            before[stage, kind] = counts[stage]
            before_recomputed[stage, kind] = recomputed[stage]
    return StageLayout(
        bounds=bounds, counts=counts, recomputed=recomputed, before=before, before_recomputed=before_recomputed
    )


def stage_costs(layout: StageLayout, costs: LayerCosts, combos: NDArray[np.intp]) -> StageCosts:
    """Costs of the stages at each combination that `combos` picks from `costs`."""
    counts, recomputed = layout.counts, layout.recomputed

    def total(values: Array, weights: Array = counts) -> Array:
        return weights @ values[:, combos]

    forward, backward = total(costs.seconds["forward"]), total(costs.seconds["backward"])
    again = total(costs.seconds["forward"], recomputed)
    comm_forward = total(costs.tensor_comm_seconds["forward"])
    comm_backward = total(costs.tensor_comm_seconds["backward"]) + total(
        costs.tensor_comm_seconds["forward"], recomputed
    )
    host_forward = total(costs.host_seconds["forward"])
    host_backward = total(costs.host_seconds["backward"]) + total(costs.host_seconds["forward"], recomputed)
    first, last = _ends(layout)
    return StageCosts(
        forward=forward,
        backward=backward,
        recompute=again,
        host=host_forward + host_backward,
        tensor_comm=comm_forward + comm_backward,
        forward_busy=forward + comm_forward + host_forward,
        backward_busy=backward + again + comm_backward + host_backward,
        num_parameters=total(costs.num_parameters),
        largest_layer=np.where((counts > 0)[:, :, None], costs.num_parameters[None][:, :, combos], 0.0).max(axis=1),
        matrix_sides=total(costs.matrix_sides),
        num_vectors=total(costs.num_vectors),
        kept_bytes=total(costs.saved_bytes, counts - recomputed) + total(costs.input_bytes, recomputed),
        working_bytes=_working_bytes(layout, costs, combos),
        input_bytes=costs.input_bytes[first][:, combos],
        output_bytes=costs.output_bytes[last][:, combos],
    )


def _ends(layout: StageLayout) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The kind of the first and of the last layer of each stage."""
    held = layout.before.sum(axis=2)
    present = layout.counts > 0
    first = np.argmin(np.where(present, held, np.inf), axis=1)
    last = np.argmax(np.where(present, held, -np.inf), axis=1)
    return first, last


def _working_bytes(layout: StageLayout, costs: LayerCosts, combos: NDArray[np.intp]) -> Array:
    """The most that one micro-batch holds at any moment: what is kept up to a layer, and that layer's own peak.

    A recomputed layer has kept only its input, and then lives through a whole forward and backward by itself.
    """
    saved, inputs = costs.saved_bytes[:, combos], costs.input_bytes[:, combos]
    peak = np.maximum(costs.peak_bytes["forward"], costs.peak_bytes["backward"])[:, combos]
    held = np.einsum("skj,jn->skn", layout.before - layout.before_recomputed, saved)
    held += np.einsum("skj,jn->skn", layout.before_recomputed, inputs)
    is_recomputed_kind = (layout.recomputed > 0)[:, :, None]
    own = np.where(is_recomputed_kind, inputs[None], saved[None])
    moments = np.where((layout.counts > 0)[:, :, None], held - own + peak[None], 0.0)
    return np.asarray(moments.max(axis=1))
