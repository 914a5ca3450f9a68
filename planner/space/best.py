"""The best plan of each layout and schedule that fits, and their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.space.layouts import Ints
from profiles.models.transformer import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best plan of each layout and schedule that fits, fastest first. Shapes: one entry per plan.

    `layout`, `micro_batch`, `schedule` and `recompute` are places in the layouts and in their variants.
    """

    layout: Ints
    micro_batch: Ints
    schedule: Ints
    recompute: Ints
    step_seconds: Array
    device_bytes: Array

    def __len__(self) -> int:
        return len(self.layout)


def fastest(layouts: Ints, seconds: Array, held: Array) -> tuple[Array | Ints, ...]:
    """The fastest plan of each layout and schedule, as columns of Best."""
    count, sizes, schedules, ways = seconds.shape
    place = seconds.transpose(0, 2, 1, 3).reshape(count * schedules, -1).argmin(axis=1)
    micro, recompute = np.unravel_index(place, (sizes, ways))
    layout, schedule = np.repeat(np.arange(count), schedules), np.tile(np.arange(schedules), count)
    least = seconds[layout, micro, schedule, recompute]
    columns = (layouts[layout], micro, schedule, recompute, least, held[layout, micro, schedule, recompute])
    usable = np.isfinite(least)
    return tuple(column[usable] for column in columns)


def ranked(blocks: list[tuple[Array | Ints, ...]]) -> Best:
    """The plans of all blocks, as columns of Best, put in order."""
    columns = [np.concatenate(column) for column in zip(*blocks, strict=True)] or [np.zeros(0)] * 6
    # Equal times: the one of fewer bytes, then the layout that comes first.
    order = np.lexsort((columns[0], columns[5], columns[4]))
    ints = [column[order].astype(np.int64) for column in columns[:4]]
    return Best(
        layout=ints[0],
        micro_batch=ints[1],
        schedule=ints[2],
        recompute=ints[3],
        step_seconds=columns[4][order],
        device_bytes=columns[5][order],
    )
