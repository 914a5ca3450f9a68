"""What plans of the space hold: by their lists of steps where those are ours, else by the closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.space.block import block
from planner.space.block_memory import device_bytes
from planner.space.explore import Memory, Place, Space
from planner.space.memory_by_step import held_exactly
from planner.space.place_layers import placed_footprint
from planner.space.to_plans import jobs_at


def memories(space: Space, places: Sequence[Place]) -> list[Memory]:
    """What the plans at `places` hold; what was asked before is known."""
    keys = [(place, space.placed.get(place)) for place in places]
    unknown = list(dict.fromkeys(place for place, key in zip(places, keys, strict=True) if key not in space.held))
    if unknown:
        space.held.update(
            ((place, space.placed.get(place)), memory)
            for place, memory in zip(unknown, _memories(space, unknown), strict=True)
        )
    return [space.held[key] for key in keys]


def _memories(space: Space, places: Sequence[Place]) -> list[Memory]:
    """The same, worked out.

    Model: in the closed form, where some layers of a stage are recomputed, bytes lie between those of none and of all.
    """
    share = np.array([space.choices(place.layout).share[place.recompute] for place in places])
    most, least = (placed_footprint(space, places, jobs_at(space, places, method)) for method in (None, "none"))
    stages = least.stage_allocated_bytes + (most.stage_allocated_bytes - least.stage_allocated_bytes) * share[:, None]
    offloaded = least.offloaded_bytes + (most.offloaded_bytes - least.offloaded_bytes) * share
    parts = {name: least.parts[name] + (values - least.parts[name]) * share for name, values in most.parts.items()}
    beyond = [held.device_bytes - held.allocated_bytes for held in (least, most)]
    result = []
    for index, place in enumerate(places):
        held = held_exactly(space, place)
        if held is not None:
            own, numbers = held.parts, held.rank_bytes
            device = sum(own.values()) + float(beyond[0][index] + (beyond[1][index] - beyond[0][index]) * share[index])
        else:
            own, numbers = {name: float(values[index]) for name, values in parts.items()}, stages[index]
            device = float(most.device_bytes[index]) if place in space.placed else closed_bytes(space, place)
        known = tuple(map(float, numbers[np.isfinite(numbers)]))
        result.append(
            Memory(
                parts=own,
                stages=known,
                device=device,
                outside=float(most.context_bytes[index]),
                offloaded=float(offloaded[index]),
            )
        )
    return result


def closed_bytes(space: Space, place: Place) -> float:
    """What the search says that the plan at `place` takes of its device."""
    own = block(space.tables, np.array([place.layout]), space.choices(place.layout))
    return float(device_bytes(own)[0, place.micro_batch, place.schedule, place.recompute])
