"""Where each rank stands: the plan's axes as a device mesh, innermost axis on neighbouring ranks."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from planner.plan import Plan
from profiles.rank import unpinned


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """A rank's index along each axis of the plan."""

    tensor: int = 0
    context: int = 0
    data: int = 0
    pipeline: int = 0


def degrees(plan: Plan) -> dict[str, int]:
    """Number of ranks along each axis."""
    return {axis: plan.degree(axis) for axis in plan.axis_order}


def coordinates(plan: Plan, rank: int) -> Coordinates:
    """The place of `rank`: the first axis of `axis_order` varies fastest."""
    place, rest = {}, rank
    for axis in plan.axis_order:
        rest, place[axis] = divmod(rest, degrees(plan)[axis])
    return Coordinates(**place)


class Meshes:
    """The device meshes of a job, one per layout, shared by all plans of that layout.

    They live as long as the job: DTensor remembers by mesh equality what it worked out for a mesh, so a second mesh
    like one whose process groups are gone would be given those.
    """

    def __init__(self, device_kind: str) -> None:
        self._device_kind = device_kind
        self._meshes: dict[tuple[tuple[str, int], ...], DeviceMesh] = {}

    def of(self, plan: Plan) -> DeviceMesh:
        """The plan's mesh, one dimension per axis; collective: all ranks must ask for the same plans in one order."""
        outermost_first = tuple((axis, degrees(plan)[axis]) for axis in reversed(plan.axis_order))
        if outermost_first not in self._meshes:
            names, shape = zip(*outermost_first, strict=True)
            with unpinned():
                self._meshes[outermost_first] = init_device_mesh(self._device_kind, shape, mesh_dim_names=names)
        return self._meshes[outermost_first]
