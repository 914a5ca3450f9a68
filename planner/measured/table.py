"""The candidates of a search as columns: one row a plan, every choice a NumPy array."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.plans import AXES, Plan
from planner.schedules.laws import whole_bubble
from planner.schedules.registry import NONE, SCHEDULES
from planner.schedules.traits import ONE_STAGE

Ints = NDArray[np.int64]
# Innermost first; which of data and pipeline parallel lies next to the tensor axis decides which one crosses nodes.
AXIS_ORDERS: tuple[tuple[str, ...], ...] = (AXES, ("tensor", "context", "pipeline", "data"))


def schedule_names() -> tuple[str, ...]:
    """Schedules that the closed form knows: of one stage per rank, which have 1F1B's bubble; first that of no pipeline.

    They are asked for by number (`PlanTable.schedule`).
    """
    known = (rules for rules in SCHEDULES.values() if rules.stages == ONE_STAGE and rules.bubble_left is whole_bubble)
    return (NONE, *(rules.name for rules in known))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTable:
    """Columns of equal length; `schedule`, `codec` and `axis_order` are indices into their names."""

    data_parallel: Ints
    tensor_parallel: Ints
    pipeline_parallel: Ints
    micro_batch_size: Ints
    num_microbatches: Ints
    schedule: Ints
    zero_stage: Ints
    recompute: Ints
    codec: Ints
    axis_order: Ints
    codec_names: tuple[str, ...]
    precision: str

    def __len__(self) -> int:
        return len(self.data_parallel)

    def take(self, rows: NDArray[np.intp]) -> PlanTable:
        """The table of some rows."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        taken = {name: column[rows] for name, column in columns.items() if isinstance(column, np.ndarray)}
        return PlanTable(**{**columns, **taken})

    def plan(self, row: int, stage_bounds: tuple[int, ...]) -> Plan:
        """Row `row` as a Plan."""
        return Plan(
            data_parallel=int(self.data_parallel[row]),
            tensor_parallel=int(self.tensor_parallel[row]),
            pipeline_parallel=int(self.pipeline_parallel[row]),
            axis_order=AXIS_ORDERS[self.axis_order[row]],
            micro_batch_size=int(self.micro_batch_size[row]),
            num_microbatches=int(self.num_microbatches[row]),
            stage_bounds=stage_bounds,
            schedule=schedule_names()[self.schedule[row]],
            zero_stage=int(self.zero_stage[row]),
            recompute="full" if self.recompute[row] else "none",
            codec=self.codec_names[self.codec[row]],
            precision=self.precision,
        )
