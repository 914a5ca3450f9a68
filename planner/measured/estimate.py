"""The closed form: step time by source and memory by kind for a whole table of plans at once.

Costs are computed once per distinct factor and gathered: layers per (micro-batch, tensor degree), stages per (stage
count, tensor degree, recomputation), the pipeline and the gradient exchange per row. No loop runs over plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.measured.collectives import collective_seconds, group_of
from planner.measured.gradients import gradient_seconds, optimizer_seconds
from planner.measured.layer_costs import LayerCosts, layer_costs
from planner.measured.memory import stage_bytes
from planner.measured.stages import StageCosts, StageLayout, layout, stage_costs
from planner.measured.table import PlanTable
from planner.parts import COMMUNICATION, PART_NAMES
from planner.prediction import KINDS
from profiles.machines.profile import MachineProfile
from profiles.models.operators import PHASES
from profiles.models.profile import ModelProfile

Array = NDArray[np.float64]
# Half of a 90 % band in standard errors of a normal distribution.
BAND_WIDTH = 1.64
# Assumed: how much of a collective compute hides is less certain than how long it takes alone.
LEAST_COMM_ERROR_FRACTION = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The price of every row. Shapes: (plan,); `layouts` by `layout_index`."""

    step_seconds: Array
    error_fraction: Array
    seconds: dict[str, Array]
    bytes_per_rank: dict[str, Array]
    peak_bytes: Array
    stage_peak_bytes: tuple[Array, ...]
    layout_index: NDArray[np.intp]
    layouts: tuple[StageLayout, ...]
    provenance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """What all rows share: machine, model, and the costs of layers at each (micro-batch, tensor degree)."""

    machine: MachineProfile
    model: ModelProfile
    sequence_length: int
    costs: LayerCosts
    combos: NDArray[np.intp]

    def stages(self, layout: StageLayout, rows: NDArray[np.intp]) -> StageCosts:
        """Stage costs of some rows that share a layout."""
        return stage_costs(layout, self.costs, self.combos[rows])


def pricing(machine: MachineProfile, model: ModelProfile, table: PlanTable, sequence_length: int) -> Pricing:
    """Layer costs for every distinct (micro-batch, tensor degree) of `table`."""
    pairs, combos = np.unique(
        np.stack([table.micro_batch_size, table.tensor_parallel], axis=1), axis=0, return_inverse=True
    )
    batches, degrees = pairs[:, 0].astype(np.float64), pairs[:, 1].astype(np.float64)
    costs = layer_costs(machine, model, table.precision, batches, sequence_length, degrees)
    return Pricing(
        machine=machine, model=model, sequence_length=sequence_length, costs=costs, combos=combos.reshape(-1)
    )


def estimate(shared: Pricing, table: PlanTable) -> Estimate:
    """Price every row of `table`."""
    count = len(table)
    seconds = {part: np.zeros(count) for part in PART_NAMES}
    held = {kind: np.zeros(count) for kind in KINDS}
    peak, layout_index = np.zeros(count), np.zeros(count, dtype=np.intp)
    stage_peaks: list[Array] = [np.zeros(0)] * count
    layouts: list[StageLayout] = []
    for rows in _groups(table):
        stage_layout = _layout(shared, table, rows)
        stages = shared.stages(stage_layout, rows)
        part = table.take(rows)
        for name, values in _step(shared, part, stages).items():
            seconds[name][rows] = values
        by_kind = stage_bytes(shared.machine, part, stages)
        total = np.asarray(sum(by_kind.values()))
        fullest = total.argmax(axis=0)
        for kind, values in by_kind.items():
            held[kind][rows] = np.take_along_axis(values, fullest[None], axis=0)[0]
        peak[rows] = total.max(axis=0)
        for column, row in enumerate(rows):
            stage_peaks[row] = total[:, column]
        layout_index[rows] = len(layouts)
        layouts.append(stage_layout)
    step = np.asarray(sum(seconds.values()))
    return Estimate(
        step_seconds=step,
        error_fraction=_error(shared, seconds, step),
        seconds=seconds,
        bytes_per_rank=held,
        peak_bytes=peak,
        stage_peak_bytes=tuple(stage_peaks),
        layout_index=layout_index,
        layouts=tuple(layouts),
        provenance=shared.costs.provenance,
    )


def _groups(table: PlanTable) -> list[NDArray[np.intp]]:
    """Rows that share stage count, tensor degree and recomputation."""
    keys = np.stack([table.pipeline_parallel, table.tensor_parallel, table.recompute], axis=1)
    _, inverse = np.unique(keys, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    return [np.flatnonzero(inverse == index) for index in range(inverse.max() + 1 if len(table) else 0)]


def _layout(shared: Pricing, table: PlanTable, rows: NDArray[np.intp]) -> StageLayout:
    """Boundaries balanced at the group's middle micro-batch: how layers compare hardly depends on it."""
    row = rows[np.argsort(table.micro_batch_size[rows], kind="stable")[len(rows) // 2]]
    combo = shared.combos[row]
    costs = shared.costs
    recompute = bool(table.recompute[row])
    layer_seconds = np.zeros(len(costs.num_parameters))
    for phase in PHASES:
        times = 2 if recompute and phase == "forward" else 1
        per_kind = costs.seconds[phase] + costs.host_seconds[phase] + costs.tensor_comm_seconds[phase]
        layer_seconds += times * per_kind[:, combo]
    return layout(shared.model, layer_seconds, int(table.pipeline_parallel[row]), recompute)


def _step(shared: Pricing, table: PlanTable, stages: StageCosts) -> dict[str, Array]:
    """Seconds by source of rows that share a layout.

    Model: every micro-batch passes every stage once, and the slowest stage once more for each further micro-batch;
    GPipe and 1F1B take equally long. Then gradients are exchanged as far as backward did not hide it, and applied.
    """
    num_stages = len(stages.forward)
    action = 2 * shared.machine.pipeline_action_seconds if num_stages > 1 else 0.0
    busy = stages.forward_busy + stages.backward_busy + action
    slowest = busy.argmax(axis=0)[None]

    def critical(values: Array) -> Array:
        return np.asarray(np.take_along_axis(values, slowest, axis=0)[0] * table.num_microbatches)

    exchange = gradient_seconds(shared.machine, table, stages)
    return {
        "compute": critical(stages.forward + stages.backward),
        "recompute": critical(stages.recompute),
        "bubble": busy.sum(axis=0) - busy.max(axis=0),
        "tensor_comm": critical(stages.tensor_comm),
        "host": critical(stages.host + action),
        "pipeline_comm": 2 * (num_stages - 1) * message_seconds(shared.machine, table, stages),
        "data_comm": exchange.exposed,
        "codec": exchange.codec,
        "optimizer": optimizer_seconds(shared.machine, table, stages.num_parameters.max(axis=0)),
    }


def message_seconds(machine: MachineProfile, table: PlanTable, stages: StageCosts) -> Array:
    """Seconds of one message between neighbouring stages. Shapes: (plan,)."""
    result = np.zeros(len(table))
    num_stages = len(stages.forward)
    if num_stages == 1:
        return result
    num_bytes = stages.output_bytes[:-1].max(axis=0)
    strides = np.where(table.axis_order == 0, table.tensor_parallel * table.data_parallel, table.tensor_parallel)
    for stride in np.unique(strides):
        where = strides == stride
        group = group_of(num_stages, int(stride), machine.devices_per_node)
        # The slowest hop sets the pace: one that crosses nodes where any does.
        pair = group_of(2, int(stride), machine.devices_per_node) if group.inside == num_stages else group_of(2, 1, 1)
        result[where] = collective_seconds(machine, "send_receive", num_bytes[where], pair)[0]
    return result


def _error(shared: Pricing, seconds: dict[str, Array], step: Array) -> Array:
    """Half-width of the band: parts of one origin err together, those of different origins independently."""
    comm_error = max(shared.costs.comm_error_fraction, shared.costs.error_fraction, LEAST_COMM_ERROR_FRACTION)
    comm = sum(seconds[part] for part in COMMUNICATION)
    compute = sum(values for part, values in seconds.items() if part not in COMMUNICATION)
    return np.asarray(BAND_WIDTH * np.hypot(compute * shared.costs.error_fraction, comm * comm_error) / step)
