"""The best plan of each layout and schedule that fits, their order, and the plans that no other beats."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from planner.space.layouts import Ints
from profiles.models.transformer import Array

# Memory is told apart in so many steps of a device's, where plans that no other beats are kept.
MEMORY_STEPS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """Plans that fit, fastest first, one of each layout and schedule or of each amount of memory. Shapes: one per plan.

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

    def take(self, rows: Ints) -> Best:
        """Some of the plans."""
        return Best(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})


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


@dataclass(frozen=True, slots=True)
class Front:
    """Collects the plans that no other beats in time and memory, of equal steps of memory the fastest.

    `bound` are the seconds of the fastest plan seen, by the step of memory that a plan takes or any lower one; of what
    does not fit nothing is fast enough.
    """

    memory_bytes: float
    bound: Array = field(default_factory=lambda: np.append(np.full(MEMORY_STEPS, np.inf), -np.inf))
    blocks: list[tuple[Array | Ints, ...]] = field(default_factory=list)

    def see(self, layouts: Ints, seconds: Array, held: Array) -> None:
        """Look at plans, whose seconds are inf where they do not fit."""
        # A plan that takes all of the device to the last byte still fits.
        scale = MEMORY_STEPS / (self.memory_bytes * (1 + 1e-9))
        steps = np.minimum(held * scale, MEMORY_STEPS).astype(np.intp).reshape(-1)
        flat = seconds.reshape(-1)
        better = np.flatnonzero(flat < self.bound[steps])
        if not len(better):
            return
        ordered = better[np.lexsort((held.reshape(-1)[better], flat[better], steps[better]))]
        _, first = np.unique(steps[ordered], return_index=True)
        chosen = ordered[first]
        np.minimum.at(self.bound, steps[chosen], flat[chosen])
        self.bound[:-1] = np.minimum.accumulate(self.bound[:-1])
        layout, micro, schedule, recompute = np.unravel_index(chosen, seconds.shape)
        self.blocks.append((layouts[layout], micro, schedule, recompute, flat[chosen], held.reshape(-1)[chosen]))

    def plans(self) -> Best:
        """The plans that none of them beats, fastest first: each takes less memory than all before it."""
        every = ranked(self.blocks)
        lowest = np.minimum.accumulate(every.device_bytes)
        rows = np.flatnonzero(np.concatenate([[len(every) > 0], every.device_bytes[1:] < lowest[:-1]]))
        return every.take(rows)
